"""Experiments and sweeps: each names its paper, its published number and its cost, and is what its file says."""

import json
import re
from functools import cache

import commands
import pytest
import torch
import yaml
from conftest import ROOT, composed
from omegaconf import OmegaConf

from zoo.config import build, resolvers
from zoo.config.catalogue import options
from zoo.jobs.train import refuse
from zoo.runs import identity
from zoo.training.optimizers import grouped

EXPERIMENTS, SWEEPS = options("experiment"), options("sweep")
# what evaluations tell: of a likelihood, and of models' own health
METRICS = {
    "nats",
    "bits_per_dim",
    "bits_per_char",
    "nats_per_token",
    "perplexity",
    "accuracy",
    "w2_squared",
    "fid",
}
BUDGET = re.compile(r"(cpu|gpu), (\d+) min")


def text(group, name):
    return (ROOT / "configs" / group / f"{name}.yaml").read_text()


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    """Facts that are read off data are replaced by a number."""
    monkeypatch.setattr(resolvers, "vocabulary_size", lambda source: 65)
    yield
    monkeypatch.undo()
    resolvers.register()


# what a user trains before: a first stage, and the features of a perceptual distance
STAGES = {
    **{
        f"{second}/{name}": [
            "~model.codec",
            f"+model.codec={{_target_: zoo.models.{first}, shape: {shape}, levels: 256}}",
        ]
        for second, first in {"code_prior": "VQVAE", "latent_diffusion": "KLAutoencoder"}.items()
        for name, shape in {"cifar10": [3, 32, 32], "mnist_cpu": [1, 28, 28]}.items()
    },
    **{
        f"{model}/{name}": ["perceptual=none"]
        for model, name in (
            ("vqgan", "cifar10"),
            ("kl_autoencoder", "cifar10"),
            ("kl_autoencoder", "mnist_cpu"),
        )
    },
}


@cache
def config(group, name):
    words = [f"{group}={name}", *STAGES.get(name, [])]
    return OmegaConf.to_container(composed("train", *words), resolve=True)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_names_paper_number_protocol_tolerance_and_budget(name):
    said = config("experiment", name)["experiment"]
    assert set(said) == {"paper", "source", "published", "protocol", "tolerance", "budget"}
    assert re.search(r"\d{4}", said["paper"])
    assert re.search(r"https://|paper, (table|figure) \d", said["source"])
    # a smaller model than the paper's has no number of its own to meet
    assert said["published"] or "a smaller budget" in text("experiment", name).splitlines()[1]
    assert said["published"].keys() == said["tolerance"].keys() <= METRICS
    assert all(isinstance(v, int | float) and v > 0 for v in said["published"].values())
    assert all(0 < said["tolerance"][key] < value for key, value in said["published"].items())
    assert len(said["protocol"].split()) > 4
    assert BUDGET.fullmatch(said["budget"])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_opens_with_its_claim_its_cost_and_its_command(name):
    package, head, *_ = text("experiment", name).splitlines()
    assert package == "# @package _global_"
    said = config("experiment", name)["experiment"]
    assert head.endswith(f"; train.py experiment={name}")
    claims = [form for value in said["published"].values() for form in forms(value)]
    assert not claims or any(form in head for form in claims), head
    device, minutes = BUDGET.fullmatch(said["budget"]).groups()
    assert f"{minutes} min" in head
    assert config("experiment", name)["trainer"]["accelerator"] == device
    assert "CPU" in head if device == "cpu" else "GPU" in head


def forms(value):
    """How a number may be written: 0.356, 35.6 %."""
    return f"{value:g}", f"{100 * value:g} %", f"{100 * value:.1f} %"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_can_be_built_and_what_it_claims_is_no_part_of_it(name):
    told = config("experiment", name)
    if told["trainer"]["accelerator"] == "cpu":
        refuse(told)
    torch.manual_seed(0)
    model = build(told["model"], "model")
    groups = grouped(model, told["optimizer"]["groups"])  # each pattern finds parameters
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())
    schedule = build(told["schedule"], "schedule")
    steps = told["trainer"]["max_steps"]
    assert 0 < schedule(steps - 1, steps=steps) < schedule(told["schedule"]["warmup"], steps=steps) or (
        schedule(told["schedule"]["warmup"], steps=steps) == schedule(steps - 1, steps=steps) == 1
    )
    data = {"train": "a"}
    assert identity(told, data) == identity(told | {"experiment": None}, data)
    assert identity(told, data) != identity(told | {"seed": 1}, data)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_a_cpus_and_its_choices_are_there(name):
    body = yaml.safe_load(text("sweep", name))
    assert body["hydra"]["mode"] == "MULTIRUN"
    assert body["runs"] == f"runs/{name}"
    head = text("sweep", name).splitlines()[1]
    assert "a CPU's budget" in head
    assert head.endswith(f"; train.py sweep={name}")
    (group, choices), *sizes = body["hydra"]["sweeper"]["params"].items()
    assert all(key.startswith(("model.", f"{group}.")) for key, _ in sizes)
    assert set(choices.split(",")) <= set(EXPERIMENTS if group == "experiment" else options(group))
    assert len(choices.split(",")) == len(set(choices.split(",")))
    for choice in choices.split(",") if group == "experiment" else [None]:
        told = config("experiment", choice) if choice else config("sweep", name)
        assert told["trainer"]["accelerator"] == "cpu"
        assert told["experiment"]["budget"].startswith("cpu")


def test_the_sweeps_leave_out_only_what_cannot_be():
    """Two mixers have no causal form; rope2d and sinusoidal2d need images; auto is one of the others."""
    swept = {
        name: set(
            next(iter(yaml.safe_load(text("sweep", name))["hydra"]["sweeper"]["params"].values())).split(",")
        )
        for name in ("mixers", "positions")
    }
    assert set(options("mixer")) - swept["mixers"] == {"efficient", "nystrom"}
    assert set(options("position")) - swept["positions"] == {"auto", "rope2d", "sinusoidal2d"}


def test_the_sweep_over_positions_tells_how_far_each_goes_on_any_text(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("".join(f"{n} times {n} is {n * n}. " for n in range(200)))
    text = ("dataset=own_text", f"dataset.source.root={book}", "dataset.source.length=8", "evaluate.n=0")
    runs = tmp_path / "runs"
    small = ("model=transformer", "model.dim=8", "model.depth=1", "evaluate.splits=[test]")
    done = commands.train(runs, *small, *text, "-m", "sweep=positions", "position=rope,learned")
    assert done.code == 0, done.err
    picture = tmp_path / "far"
    drawn = commands.run(
        "scripts/compare", runs, "--plot", "extrapolation", "--rows", "position", "--out", picture
    )
    assert drawn.code == 0, drawn.err
    told = re.sub(r"<[^>]*>", "\n", picture.with_suffix(".svg").read_text())
    assert all(word in told for word in ("rope", "learned ✕", "16×", "own_text, test split; 2 runs"))


def test_the_sweep_of_recall_tells_states(tmp_path):
    words = ("model=transformer", *SHORT, "evaluate.n=0", "-m", "sweep=recall", "mixer=softmax,lstm")
    done = commands.train(tmp_path, *words)
    assert done.code == 0, done.err
    picture = tmp_path / "recall"
    drawn = commands.run("scripts/compare", tmp_path, "--plot", "recall", "--rows", "mixer", "--out", picture)
    assert drawn.code == 0, drawn.err
    told = re.sub(r"<[^>]*>", "\n", picture.with_suffix(".svg").read_text())
    assert all(word in told for word in ("softmax", "lstm", "accuracy (%)", "2 runs"))


SHORT = (
    "model.dim=32",  # 2 * 32 is one head of Mamba-2
    "model.depth=1",
    "dataset.source.length=16",
    "dataset.source.pairs=2",
    "dataset.source.levels=16",
    "dataset.sizes={train: 64, val: 16, test: 16}",
)


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (("sweep=recall",), 9),
        (("-m", "sweep=recall", "mixer=softmax,lstm", "seed=0,1"), 4),
    ],
)
def test_a_sweep_trains_all_that_it_names(words, runs, tmp_path):
    done = commands.train(tmp_path, "model=transformer", *SHORT, *words)
    assert done.code == 0, done.err
    found = [json.loads(path.read_text()) for path in tmp_path.glob("*/results.json")]
    assert [run["status"] for run in found] == ["finished"] * runs
    chosen = {(run["config"]["mixer"]["_target_"], run["config"]["seed"]) for run in found}
    assert len(chosen) == runs
    assert all(run["numbers"][0]["name"] == "accuracy" for run in found)
