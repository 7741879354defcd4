"""Reflow: pairs of a flow's noise and data, and a second flow on them; and how near points come to real ones."""

import itertools
import json
from functools import partial, wraps
from types import SimpleNamespace

import commands
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

import zoo
from zoo.evaluation import nfe
from zoo.evaluation.features import Extractor
from zoo.evaluation.points import w2_squared
from zoo.jobs import points
from zoo.jobs.features import real, told_of
from zoo.jobs.quality import sampled
from zoo.jobs.reflow import pairs
from zoo.jobs.samples import show_steps
from zoo.models import Diffusion
from zoo.nn import ClassCondition, EDMPath, TimeMLP
from zoo.nn.solvers import solve
from zoo.runs import Run
from zoo.training.loaders import Loaders

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


def test_pairs_of_a_model_with_classes_have_them_and_are_made_as_it_samples(tmp_path):
    torch.manual_seed(0)
    condition = partial(ClassCondition, 3, dim=4)
    model = Diffusion(
        shape=(2,), levels=None, backbone=partial(TimeMLP, width=8), condition=condition, shift=3.0
    )
    loaders = SimpleNamespace(facts={"shape": [2], "classes": 3})
    run = SimpleNamespace(folder=tmp_path, identity="a" * 64, config={"dataset": {"source": {}}})
    options = {"solver": "euler", "steps": 4, "guidance": 2.0}
    with np.load(pairs(model, loaders, run, tmp_path / "pairs", n=300, options=options)) as file:
        x, noise, y = (torch.from_numpy(file[name]) for name in ("x", "noise", "y"))
    assert y.bincount().min() > 50
    field = model.field(y, guidance=2.0)
    torch.testing.assert_close(
        x, solve(field, noise, solver="euler", steps=4, shift=3.0), rtol=1e-4, atol=1e-5
    )
    facts = json.loads((tmp_path / "pairs" / "facts.json").read_text())
    assert facts["classes"] == 3
    assert facts["made_by"]["shift"] == 3.0
    assert facts["made_by"]["guidance"] == 2.0
    for wrong, words in (
        ({"solver": "ddpm"}, "draws noise at each step"),
        ({"eta": 1.0}, r"sample\.eta: .* with solver, steps"),
    ):
        with pytest.raises(ValueError, match=words):
            pairs(model, loaders, run, tmp_path / "pairs", n=2, options=wrong)


def test_samples_of_a_second_flow_are_compared_with_real_images_and_not_with_the_firsts(
    tmp_path, monkeypatch
):
    """And those of any flow with images that are not cropped or mirrored."""
    x = torch.arange(40).reshape(10, 1, 2, 2).to(torch.uint8)

    def images(split, *, augment=None):
        return zoo.data.Arrays(x[:5] if split == "test" else x, levels=40, augment=augment)

    base = partial(images, augment=lambda x: x.flip(-1))
    source = partial(zoo.data.reflow, root=str(tmp_path), base=base, levels=40)
    facts = {
        "name": "reflow",
        "kind": "image",
        "shape": [1, 2, 2],
        "levels": 40,
        "sizes": {"train": 3, "val": 0},
    }
    for kind in (source, base):
        data = real(Loaders(kind, facts, batch_size=2, seed=0))
        assert torch.equal(data.dataset("train")[torch.arange(10)]["x"], x)
        assert told_of(data, "train") == "train"
        assert len(data.dataset("test")) == 5
    same = Loaders(images, facts, batch_size=2, seed=0)
    assert real(same) is same
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path))
    model = nn.Linear(1, 1)
    model.sample = lambda n, y=None: x[torch.randint(10, (n,))]
    sees = Extractor("_zoo", {"features": "pixels"}, "pixels", lambda x: x.flatten(1).double())
    asked = {"samples": 50, "reference": "train", "sample": {}, "metrics": ["fid"]}
    made, held_out = sampled(model, Loaders(source, facts, batch_size=2, seed=0), asked, sees, split="test")
    assert made["protocol"]["reference_count"] == 10
    assert (made["name"], held_out["name"], held_out["count"]) == ("fid_zoo", "fid_zoo_real", 5)
    assert made["value"] < held_out["value"]  # five of the ten images are others
    assert len(list(tmp_path.rglob("*.npz"))) == 2


def test_the_evaluations_of_an_adaptive_solver_are_the_mean_over_all_parts():
    """The last part has 44 of 300 points, and they are solved by themselves."""
    torch.manual_seed(0)
    model = Diffusion(shape=(2,), levels=None, backbone=partial(TimeMLP, width=8))
    data = SimpleNamespace(dataset=lambda split: zoo.data.Moons(split, sizes={"test": 300}))
    sample = model.sample

    @wraps(sample)
    def counted(*args, **options):
        x = sample(*args, **options)
        model.evaluations = len(x)
        return x

    model.sample = counted
    asked = {"metrics": ["w2_squared"], "samples": 300, "sample": {"solver": "rk45"}}
    (number,) = points.measured(model, data, asked, split="test")
    assert number["protocol"]["nfe"] == (256 + 44) / 2
    of_solvers = {"solver", "tolerance", "steps", "shift", "eta", "variance"}
    assert of_solvers & number["protocol"].keys() == {"solver", "tolerance"}
    assert nfe([20, 23, 23]) == {"nfe": 22.0}
    assert nfe([None, None]) == {}


def test_someone_before_a_screen_sees_the_steps(monkeypatch, capsys):
    model = Diffusion(shape=(2,), levels=None, backbone=partial(TimeMLP, width=8))
    show_steps(model)
    model.sample(3, steps=2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    show_steps(model)
    model.sample(3, steps=2)
    assert "sampling  step 0, 3 at once" in capsys.readouterr().err


def test_a_flow_is_told_captions_and_asked_for_one(tmp_path):
    small = (
        "model=sd3",
        "dataset=digits_captions",
        "condition=caption",
        "condition.dim=16",
        "backbone.depth=1",
    )
    small += ("condition.depth=1", "backbone.dim=16", "backbone.heads=2", "evaluate.sample.steps=1")
    done = commands.train(tmp_path, *small)
    assert done.code == 0, done.err
    run = Run.open(commands.only(tmp_path))
    words = (f"run={run.folder}", "n=2", "sample.steps=2", "sample.guidance=2", "name=asked")
    done = commands.run("scripts/sample", *words, "caption=the digit seven")
    assert done.code == 0, done.err
    assert (run.samples / "asked.png").exists()
    done = commands.run("scripts/sample", *words, "y=7")
    assert done.code == 1
    assert "has captions, not labels" in done.err


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
