"""Completion of half-hidden images: what is given stays, what is hidden is drawn, and who cannot do it is told why."""

import json

import pytest
import torch
from commands import TRANSFORMER, only, run, train

from zoo.evaluation.completion import check, completed, sheet
from zoo.models import MADE, NADE, VAE, GatedPixelCNN, PixelCNNPP

FACTS = {"name": "these", "kind": "image", "shape": [3, 5, 4], "levels": 7}
SMALL = ("model=pixelcnn", "model.dim=4", "model.depth=1", "model.head=4")


def colours(n):
    torch.manual_seed(0)
    return torch.randint(7, (n, 3, 5, 4), dtype=torch.uint8)


def gated(**options):
    torch.manual_seed(0)
    return GatedPixelCNN(shape=(3, 5, 4), levels=7, dim=4, depth=1, head=4, **options).eval()


def test_the_upper_half_is_kept_and_the_lower_drawn():
    x = colours(5)
    images, force = completed(gated(), x, each=3, options={"temperature": 2.0})
    assert images.shape == (5, 3, 3, 5, 4)
    assert (images[:, :, :, :2] == x[:, None, :, :2]).all()
    assert (images[:, 0, :, 2:] != images[:, 1, :, 2:]).any()
    assert force == {"temperature": 2.0}
    assert torch.equal(images, completed(gated(), x, each=3, options={"temperature": 2.0})[0])
    assert not torch.equal(images, completed(gated(), x, each=3, options={"temperature": 2.0}, seed=1)[0])


def test_many_images_are_done_some_at_a_time_each_with_its_label():
    x, y = colours(5), torch.tensor([0, 1, 2, 0, 1])
    seen = []

    class Noted(GatedPixelCNN):
        def sample(self, n, y=None, *, temperature=1.0, prompt=None):
            seen.append((n, y.tolist()))
            return super().sample(n, y, temperature=temperature, prompt=prompt)

    torch.manual_seed(0)
    noted = Noted(shape=(3, 5, 4), levels=7, dim=4, depth=1, head=4, classes=3, conditional=True).eval()
    images, _ = completed(noted, x, each=2, y=y, batch=2)
    assert (images[:, :, :, :2] == x[:, None, :, :2]).all()
    assert seen == [(2, [0, 1]), (2, [2, 0]), (1, [1])] * 2


def test_the_sheet_shows_original_half_and_completions():
    x = torch.full((2, 1, 4, 4), 6, dtype=torch.uint8)
    picture = sheet(x, torch.zeros(2, 3, 1, 4, 4, dtype=torch.uint8), 7)
    assert picture.shape == (3, 2 * 6 + 2, 5 * 6 + 2)
    original, half, black = (picture[0, 2:6, 2 + 6 * i : 6 + 6 * i] for i in range(3))
    assert (original == 255).all()
    assert (half[:2] == 255).all()
    assert ((half[2:] > 120) & (half[2:] < 135)).all()
    assert (black == 0).all()


def test_who_cannot_complete_is_refused_with_a_reason():
    shape, levels = (3, 5, 4), 7
    for model, facts, given, why in (
        (gated(), FACTS, "left", "given=left"),
        (gated(), {**FACTS, "kind": "text", "shape": [12]}, "top", "these has none"),
        (VAE(shape=shape, levels=levels), FACTS, "top", "VAE cannot go on from a part"),
        (NADE(shape=shape, levels=levels, hidden=3), FACTS, "top", "another order .random, seed 0"),
        (MADE(shape=shape, levels=levels, hidden=[3], random_order=True, masks=2), FACTS, "top", "2 of them"),
    ):
        with pytest.raises(ValueError, match=why):
            check(model, given, facts)
    for model in (gated(), NADE(shape=shape, levels=levels, hidden=3, random_order=False)):
        check(model, "top", FACTS)
    check(PixelCNNPP(shape=(3, 8, 8), levels=7, dim=2, depth=1), "top", FACTS)
    with pytest.raises(ValueError, match="completions=0"):
        completed(gated(), colours(2), each=0)
    with pytest.raises(ValueError, match="top_q"):
        completed(gated(), colours(2), each=1, options={"top_q": 3})


@pytest.mark.parametrize("model", [SMALL, TRANSFORMER], ids=["pixelcnn", "transformer"])
def test_a_trained_model_completes_images_of_the_test_split(model, tmp_path):
    assert train(tmp_path, *model, "evaluate.n=0").code == 0
    folder = only(tmp_path)
    words = (f"run={folder}", "given=top", "n=3", "completions=2")
    done = run("scripts/sample", *words)
    assert done.code == 0, done.err
    path = folder / "samples" / "completions-0.png"
    assert f"completions: {path}" in done.out
    told = json.loads((folder / "results.json").read_text())["samples"][path.name]
    assert (told["given"], told["n"], told["completions"], told["split"]) == ("top", 3, 2, "test")
    assert "prompt" not in told["options"]
    assert "the test split has 360 images" in run("scripts/sample", f"run={folder}", "given=top", "n=361").err
    assert "given=top and prompt=a are ways to draw" in run("scripts/sample", *words, "prompt=a").err


def test_a_run_of_another_kind_says_why_it_cannot(copy):
    done = run("scripts/sample", f"run={copy}", "given=top", "n=2")
    assert done.code == 1
    assert "VAE cannot go on from a part of an image" in done.err
