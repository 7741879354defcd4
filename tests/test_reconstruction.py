"""Pictures of what a codec leaves of images: which line is which, where they are drawn, and who has none."""

import json

import torch
from commands import TRANSFORMER, only, run, train

from zoo.jobs.reconstruct import paired

SMALL = ("model=vqvae", "encoder.widths=[4,8]", "model.dim=4", "quantizer.levels=8")


def test_lines_of_images_and_of_reconstructions_take_turns():
    x = torch.arange(1, 6).view(5, 1, 1, 1)
    told = paired(x, 10 * x, columns=2).flatten().tolist()
    assert told == [1, 2, 10, 20, 3, 4, 30, 40, 5, 0, 50, 0]
    assert paired(x, 10 * x, columns=8).flatten().tolist() == [1, 2, 3, 4, 5, 10, 20, 30, 40, 50]


def test_a_first_stage_ends_in_a_picture_of_its_reconstructions(tmp_path):
    done = train(tmp_path, *SMALL)
    assert done.code == 0, done.err
    found = only(tmp_path)
    drawn = json.loads((found / "results.json").read_text())["samples"]
    assert drawn["final.png"]["given"] == "reconstruction"
    done = run("scripts/sample", f"run={found}", "given=reconstruction", "n=3")
    assert done.code == 0, done.err
    assert "reconstruction.png" in done.out
    assert pixels(found) == expected(found)


def pixels(folder):
    """The picture's levels of grey, an image a place: (2, 3, 8, 8)."""
    import numpy as np
    from PIL import Image

    picture = torch.from_numpy(np.array(Image.open(folder / "samples" / "reconstruction.png")))[..., 0]
    zoom = picture.shape[1] // 32  # three images of 8 and four gaps of 2
    small = picture[zoom // 2 :: zoom, zoom // 2 :: zoom]
    return [[small[t : t + 8, s : s + 8].tolist() for s in (2, 12, 22)] for t in (2, 12)]


def expected(folder):
    """The same of the run's model and data, asked directly."""
    import zoo
    from zoo.data import Digits

    data = Digits("test")
    x = data[torch.arange(3) * len(data) // 3]["x"]
    model = zoo.load(folder)
    with torch.inference_mode():
        back = model.decode(model.encode(x))
    return [(line.float()[:, 0] / 16 * 255).round().int().tolist() for line in (x, back)]


def test_who_codes_no_images_says_so(tmp_path):
    done = train(tmp_path, *TRANSFORMER)
    assert done.code == 0, done.err
    done = run("scripts/sample", f"run={only(tmp_path)}", "given=reconstruction")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "model=vqvae" in done.err
