"""Interpolation: a straight line between latents, which ends where it should; and samples, named by their options."""

import json

import pytest
import torch
from commands import TRANSFORMER, only, run, train

from zoo.evaluation import interpolated
from zoo.evaluation.interpolation import check, sheet
from zoo.models import NICE, VAE, VQVAE, Glow
from zoo.types import Space

FACTS = {"name": "these", "kind": "image", "shape": [1, 4, 4], "levels": 17}


def digits(n):
    return torch.randint(17, (n, 1, 4, 4), dtype=torch.uint8)


@pytest.mark.parametrize(
    "make", [lambda **k: NICE(hidden=(8,), **k), lambda **k: Glow(hidden=6, steps=2, scales=2, **k)]
)
def test_a_flow_goes_from_one_image_to_the_other_exactly(make):
    torch.manual_seed(0)
    model, a, b = make(shape=(1, 4, 4), levels=17).double(), digits(3), digits(3)
    model.prepare([{"x": digits(60)}])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.02 * torch.randn_like(parameter)
            )  # more would make 17 levels of 16 pixels explode
    line = interpolated(model, a, b, steps=5)
    assert (line.shape, line.dtype) == ((3, 5, 1, 4, 4), torch.uint8)
    assert torch.equal(line[:, 0], a)
    assert torch.equal(line[:, -1], b)
    middle = model.decode((model.encode(a) + model.encode(b)) / 2)
    assert torch.equal(line[:, 2], middle)
    assert not torch.equal(middle, ((a.float() + b.float()) / 2).to(torch.uint8))  # the line is the latents'


def test_a_line_in_a_straight_space_is_even():
    class Same:
        latent = Space((1,))

        def encode(self, x):
            return x.float()

        def decode(self, z):
            return z

    line = interpolated(Same(), torch.tensor([[0]]), torch.tensor([[12]]), steps=4)
    assert line.flatten().tolist() == pytest.approx([0, 4, 8, 12])


def test_the_sheet_shows_both_images_and_the_way():
    a, b = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.full((2, 1, 4, 4), 16, dtype=torch.uint8)
    picture = sheet(a, b, torch.full((2, 3, 1, 4, 4), 8), 17)
    assert picture.shape == (3, 2 * 6 + 2, 5 * 6 + 2)
    assert [int(picture[0, 3, 3 + 6 * i]) for i in range(5)] == [0, 128, 128, 128, 255]


def test_who_has_no_line_is_refused_with_a_reason():
    space = {"shape": (1, 4, 4), "levels": 17}
    for model, steps, facts, why in (
        (VAE(**space), 1, FACTS, "interpolate=1: it takes two"),
        (VAE(**space), 5, {**FACTS, "kind": "text", "shape": [12]}, "these has none"),
        (VQVAE(**space), 5, FACTS, "VQVAE has no latents that are real"),
    ):
        with pytest.raises(ValueError, match=why):
            check(model, steps, facts)
    for make in (VAE, Glow):
        check(make(**space), 5, FACTS)


def test_a_trained_flow_interpolates_and_draws_at_several_temperatures(tmp_path):
    words = ("model=glow", "model.hidden=4", "model.steps=1", "model.scales=1", "evaluate.n=0")
    done = train(tmp_path, *words)
    assert done.code == 0, done.err
    folder = only(tmp_path)
    done = run("scripts/sample", f"run={folder}", "interpolate=5", "n=3")
    assert done.code == 0, done.err
    assert f"interpolation: {folder / 'samples' / 'interpolation.png'}" in done.out
    for t in (0.0, 0.7):
        assert run("scripts/sample", f"run={folder}", f"sample.temperature={t}", "n=4").code == 0
    told = json.loads((folder / "results.json").read_text())["samples"]
    assert told["interpolation.png"] == {"n": 3, "interpolate": 5, "split": "test", "step": 4}
    for t in (0.0, 0.7):
        assert told[f"samples-0-temperature={t}.png"]["options"] == {"temperature": t}
        assert (folder / "samples" / f"samples-0-temperature={t}.png").exists()
    assert "takes 361 images" in run("scripts/sample", f"run={folder}", "interpolate=5", "n=360").err


def test_a_run_without_latents_says_so(tmp_path):
    assert train(tmp_path, *TRANSFORMER, "evaluate.n=0").code == 0
    done = run("scripts/sample", f"run={only(tmp_path)}", "interpolate=5", "n=2")
    assert done.code == 1
    assert "Autoregressive has no latents that are real numbers" in done.err
