"""Reflow: pairs of a flow's noise and data, and a second flow on them; and how near points come to real ones."""

import itertools
import json
from functools import partial

import commands
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import zoo
from zoo.evaluation.points import w2_squared
from zoo.models import Diffusion
from zoo.nn import EDMPath, TimeMLP
from zoo.nn.solvers import solve
from zoo.runs import Run

FLOW = (
    "model=rectified_flow",
    "backbone=mlp",
    "backbone.width=16",
    "dataset=moons",
    "dataset.sizes={train: 600, val: 64, test: 64}",
    "model.source._target_=zoo.nn.EightGaussians",
    "ema=0.5",
    "evaluate.metrics=[w2_squared,straightness]",
    "evaluate.samples=40",
    "evaluate.splits=[test]",
    "evaluate.sample.steps=4",
)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A first flow's run, and the folder of pairs that were made of it."""
    folder = tmp_path_factory.mktemp("first")
    done = commands.train(folder / "runs", *FLOW)
    assert done.code == 0, done.err
    run = Run.open(commands.only(folder / "runs"))
    words = (
        "reflow",
        f"run={run.folder}",
        "n=300",
        f"data_dir={folder}",
        "name=pairs",
        "sample.tolerance=1e-6",
    )
    done = commands.run("scripts/prepare", *words)
    assert done.code == 0, done.err
    assert "dataset=reflow" in done.out
    return run, folder / "pairs"


def test_pairs_are_noise_and_what_the_averaged_flow_makes_of_it(first):
    run, folder = first
    with np.load(folder / "pairs.npz") as file:
        x, noise = (torch.from_numpy(file[name]) for name in ("x", "noise"))
    assert x.shape == noise.shape == (300, 2)
    model = zoo.load(run.folder)  # the averaged weights
    with torch.no_grad():
        again = solve(model.field(), noise, solver="rk45", tolerance=1e-6)
    assert (again - x).abs().max() < 1e-3
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["made_by"]["run"] == run.identity[:12]
    assert "averaged" in facts["made_by"]["weights"]
    assert (facts["shape"], facts["levels"], facts["classes"]) == ([2], None, None)


def test_a_second_flow_is_trained_on_pairs_and_measured_on_the_first_ones_data(first, tmp_path):
    _, folder = first
    words = [word for word in FLOW if "dataset" not in word]
    words += ["dataset=reflow", f"dataset.source.root={folder}", "dataset.source.holdout=30", "evaluate.n=0"]
    done = commands.train(tmp_path, *words, "evaluate.sample.solver=euler", "evaluate.sample.steps=1")
    assert done.code == 0, done.err
    numbers = {number["name"]: number for number in Run.open(commands.only(tmp_path)).results["numbers"]}
    assert set(numbers) == {"w2_squared", "straightness"}
    told = numbers["w2_squared"]["protocol"]
    assert (told["solver"], told["steps"], told["nfe"]) == ("euler", 1, 1)
    root = zoo.data.reflow("train", root=str(folder), base=None, holdout=30)
    assert len(root) == 270
    batch = root[torch.tensor([3, 1])]
    assert torch.equal(batch["noise"], root.noise[[3, 1]])
    test = zoo.data.Moons("test", sizes={"test": 64})
    assert zoo.data.reflow("test", root=str(folder), base=lambda split: test) is test
    other = zoo.data.reflow("train", root=str(folder), base=None, holdout=30)
    other.noise = other.noise + 1
    assert other.fingerprint != root.fingerprint


def test_without_pairs_the_way_to_them_is_told(tmp_path):
    done = commands.train(tmp_path, "model=cnf", "dataset=reflow", f"dataset.source.root={tmp_path}/none")
    assert done.code == 1
    assert "scripts/prepare.py reflow" in done.err
    with pytest.raises(FileNotFoundError, match="writes it"):
        zoo.data.Pairs("train", root=str(tmp_path))


def test_a_model_that_is_no_flow_makes_no_pairs(finished, tmp_path):
    done = commands.run("scripts/prepare", "reflow", f"run={finished}", f"data_dir={tmp_path}", "n=2")
    assert done.code == 1
    assert "VAE makes no data of noise" in done.err


def test_w2_is_the_least_over_all_permutations():
    torch.manual_seed(0)
    x, y = torch.randn(2, 6, 2, dtype=torch.float64)
    best = min(
        (x - y[list(order)]).square().sum(1).mean().item() for order in itertools.permutations(range(6))
    )
    assert w2_squared(x, y) == pytest.approx(best)
    assert w2_squared(x, x.flip(0)) == 0
    assert w2_squared(x, x + torch.tensor([3.0, 4.0])) == pytest.approx(25)
    with pytest.raises(ValueError, match="as many"):
        w2_squared(x, y[:3])


def test_metrics_of_points_are_refused_for_images(finished):
    for metric, words in (("w2_squared", "real numbers"), ("straightness", "has no path")):
        done = commands.run("evaluate", f"run={finished}", f"metrics=[{metric}]")
        assert done.code == 1
        assert words in done.err


def test_the_first_flow_says_what_it_was_measured_by(first):
    run, _ = first
    numbers = {number["name"]: number for number in run.results["numbers"]}
    assert numbers["w2_squared"]["value"] > 0
    assert numbers["w2_squared"]["count"] == 40
    assert numbers["w2_squared"]["protocol"]["nfe"] == 8
    assert numbers["straightness"]["stderr"] > 0
    assert OmegaConf.load(run.config_path).model.backbone.width == 16


def test_images_are_sent_to_their_noise_and_back(tmp_path):
    small = ("model=ddpm", "backbone=mlp", "backbone.width=16", "evaluate.n=0", "evaluate.metrics=[]")
    done = commands.train(tmp_path, *small)
    assert done.code == 0, done.err
    run = Run.open(commands.only(tmp_path))
    done = commands.run("scripts/sample", f"run={run.folder}", "given=inversion", "n=3", "sample.steps=5")
    assert done.code == 0, done.err
    assert (run.samples / "inversion.png").exists()
    told = run.results["samples"]["inversion.png"]
    assert told["options"] == {"steps": 5, "guidance": 1.0}
    assert f"{told['error']:.3f} levels" in done.out
    for solver, stages in (("heun", 4), ("dpm_solver", 6)):
        words = (f"sample.solver={solver}", "sample.steps=5", f"name={solver}", "n=3")
        done = commands.run("scripts/sample", f"run={run.folder}", f"along={stages}", *words)
        assert done.code == 0, done.err
        width, height = Image.open(run.samples / f"{solver}.png").size
        assert width / height == pytest.approx((stages * 10 + 2) / (3 * 10 + 2), rel=0.01)
    assert run.results["samples"]["heun.png"]["along"] == 4
    done = commands.run("scripts/sample", f"run={run.folder}", "along=8", "sample.steps=5", "n=2")
    assert done.code == 1
    assert "told of 6 stages; take sample.steps=7 or more" in done.err


def test_the_stages_of_a_sample_begin_with_its_noise_and_end_with_it(monkeypatch):
    model = Diffusion(shape=(1, 4, 4), levels=17, backbone=partial(TimeMLP, width=8), path=EDMPath())
    seen = []
    model.watch = lambda i, t, x: seen.append(model.shown(x, t))
    x = model.sample(3, solver="heun", steps=4)
    assert len(seen) == 5
    assert torch.equal(seen[-1], x)
    assert seen[0].dtype == x.dtype
    noise = seen[0].double() / 16 * 2 - 1
    assert 0.5 < noise.std() < 1.0, "EDM's noise of deviation 80 is shown as one of deviation 1, clipped"


def test_a_model_without_noise_inverts_nothing(finished):
    done = commands.run("scripts/sample", f"run={finished}", "given=inversion")
    assert done.code == 1
    assert "VAE has no noise that gives an image" in done.err
    done = commands.run("scripts/sample", f"run={finished}", "along=3")
    assert done.code == 1
    assert "VAE has no way to its samples" in done.err
