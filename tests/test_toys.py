"""Points of the plane: figures of the papers, equal on every machine."""

import math

import pytest
import torch
from conftest import composed
from omegaconf import OmegaConf

import zoo.data
from zoo.config import build
from zoo.jobs.data import loaders
from zoo.nn import EightGaussians

TOYS = ("eight_gaussians", "moons", "checkerboard", "spirals")
SIZES = {"train": 20_000, "val": 100, "test": 100}


def made(name, split="train", **options):
    node = OmegaConf.to_container(composed("train", "model=realnvp", f"dataset={name}"), resolve=True)[
        "dataset"
    ]
    return build(node["source"] | {"sizes": SIZES, **options}, "dataset.source")(split=split)


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_keeps_the_facts_of_its_file(name):
    config = OmegaConf.to_container(composed("train", "model=realnvp", f"dataset={name}"), resolve=True)
    config["dataset"]["source"]["sizes"] = config["dataset"]["sizes"] = SIZES
    data = loaders(config)
    for split, size in SIZES.items():
        x = data.dataset(split)[torch.arange(10)]["x"]
        assert (x.dtype, x.shape, len(data.dataset(split))) == (torch.float32, (10, 2), size)
    assert len(set(data.fingerprints.values())) == 3


@pytest.mark.parametrize("name", TOYS)
def test_points_are_made_once_and_for_all(name):
    assert made(name).fingerprint == made(name).fingerprint
    assert torch.equal(made(name).x * 2**20, (made(name).x * 2**20).round())


def test_eight_gaussians_are_those_of_the_source():
    data, source = made("eight_gaussians"), EightGaussians()
    centres = source.centres(data.x)[data.y]
    rest = data.x - centres
    assert rest.var(0).sub(math.sqrt(0.1)).abs().max() < 0.01
    assert rest.mean(0).abs().max() < 0.02
    assert data.y.bincount().min() > 2300
    entropy = math.log(8 * 2 * math.pi * math.e * math.sqrt(0.1))  # they hardly overlap
    assert -source.log_prob(data.x).mean().item() == pytest.approx(entropy, abs=0.02)


def test_moons_are_half_circles_moved_along_the_diagonal():
    x = (made("moons", noise=0.0).x + 1) / 3
    y = made("moons", noise=0.0).y
    outer, inner = x[y == 0], x[y == 1]
    assert torch.allclose(outer.norm(dim=1), torch.ones(()), atol=1e-5)
    assert torch.allclose((inner - torch.tensor([1.0, 0.5])).norm(dim=1), torch.ones(()), atol=1e-5)
    assert outer[:, 1].min() >= -1e-5
    assert inner[:, 1].max() <= 0.5 + 1e-5
    moved = (made("moons").x - made("moons", noise=0.0).x) / 3
    assert torch.allclose(moved[:, 0], moved[:, 1], atol=1e-5)
    assert 0 <= moved.min() <= moved.max() <= 0.2
    assert moved.mean().item() == pytest.approx(0.1, abs=0.002)


def test_a_checkerboard_has_only_black_fields():
    field = ((made("checkerboard").x + 4) / 2).floor().long()
    assert (field.sum(1) % 2 == 0).all()
    counts = (4 * field[:, 1] + field[:, 0]).bincount(minlength=16)
    assert (counts > 0).sum() == 8
    assert counts[counts > 0].min() > 2300


def test_spirals_have_two_arms_that_mirror_each_other():
    data = made("spirals", noise=0.0)
    first, second = data.x[data.y == 0], data.x[data.y == 1]
    assert data.x.norm(dim=1).max() < 3.3
    assert torch.cdist(first[:2000], second[:2000]).min(1).values.median() > 0.2
    assert torch.cdist(first[:2000], -second[:2000]).min(1).values.median() < 0.05


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split='other'"):
        zoo.data.Moons("other", sizes={"other": 3})
