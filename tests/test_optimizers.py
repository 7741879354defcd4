"""Optimizers do what their papers say, groups hold every parameter once, schedules have their values."""

import functools
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import composed
from omegaconf import OmegaConf
from torch import nn

from zoo.config import build as make
from zoo.config.catalogue import options
from zoo.training.optimizers import build, grouped, labels
from zoo.training.schedules import constant, cosine, linear, staircase, wsd

CONFIGS = Path(__file__).parents[1] / "configs"
LR, B1, B2, EPS, DECAY = 0.1, 0.8, 0.95, 1e-8, 0.3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


def config(name):
    """The factory and the groups of configs/optimizer/<name>.yaml."""
    node = OmegaConf.to_container(OmegaConf.load(CONFIGS / "optimizer" / f"{name}.yaml"))
    groups = node.pop("groups")
    assert node.pop("_partial_") is True
    optimizer = getattr(torch.optim, node.pop("_target_").removeprefix("torch.optim."))
    return functools.partial(optimizer, **node), groups


def adam(w, gradient, steps, decoupled):
    """Kingma & Ba, algorithm 1, with L2, or Loshchilov & Hutter, algorithm 2, line by line."""
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, steps + 1):
        g = gradient(w) if decoupled else gradient(w) + DECAY * w
        m = B1 * m + (1 - B1) * g
        v = B2 * v + (1 - B2) * g * g
        step = LR * (m / (1 - B1**t)) / ((v / (1 - B2**t)).sqrt() + EPS)
        w = w - step - (LR * DECAY * w if decoupled else 0)
    return w


def sgd(w, gradient, steps):
    v = torch.zeros_like(w)
    for _ in range(steps):
        v = 0.9 * v + gradient(w) + DECAY * w
        w = w - LR * v
    return w


def gradient(w):
    return torch.cos(w) + w**3


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_an_optimizer_follows_its_papers_equations(name):
    factory, _ = config(name)
    betas = {} if name == "sgd" else {"betas": (B1, B2), "eps": EPS}
    module = nn.Linear(6, 1, bias=False).double()
    start = module.weight.detach().clone()
    optimizer = build(module, functools.partial(factory, lr=LR, weight_decay=DECAY, **betas))
    for _ in range(7):
        module.weight.grad = gradient(module.weight.detach())
        optimizer.step()
    want = sgd(start, gradient, 7) if name == "sgd" else adam(start, gradient, 7, name == "adamw")
    assert optimizer.defaults["fused"] is True
    torch.testing.assert_close(module.weight.detach(), want, rtol=1e-12, atol=1e-12)


def test_every_parameter_is_in_one_group_and_the_first_pattern_has_it():
    model = Net()
    parts = grouped(
        model, [{"match": r"^norm\.", "lr": 1.0}, {"match": "bias:|:.*Norm", "weight_decay": 0.0}]
    )
    assert [len(part["params"]) for part in parts] == [2, 2, 1]
    assert parts[1]["lr"] == 1.0
    assert parts[2]["params"][0] is model.linear.bias
    assert sorted(id(p) for part in parts for p in part["params"]) == sorted(
        id(p) for p in model.parameters()
    )


def test_shared_and_frozen_parameters_are_counted_once_and_never():
    model = Net()
    model.linear.requires_grad_(False)
    assert list(labels(model)) == ["embed.weight:Embedding", "norm.weight:LayerNorm", "norm.bias:LayerNorm"]


def test_adamw_decays_only_what_multiplies():
    optimizer = build(Net(), *config("adamw"))
    decay = {id(p): part["weight_decay"] for part in optimizer.param_groups for p in part["params"]}
    assert sorted(decay.values()) == [0.0, 0.0, 0.0, 0.0, 0.01]
    assert build(nn.Linear(2, 2, bias=False), *config("adamw")).param_groups[0]["weight_decay"] == 0.01


# names of what multiplies what it is given, and so decays
WEIGHTS = {"weight", "weight_ih_l0", "weight_hh_l0", "C"}
CHOICES = [
    *(f"mixer={name}" for name in options("mixer")),
    *(f"position={name}" for name in options("position")),
    *(f"mlp={name}" for name in options("mlp")),
]


@pytest.mark.parametrize("choice", CHOICES)
def test_adamw_decays_the_weights_of_every_choice_and_nothing_else(choice):
    words = [
        "model.dim=32",
        "model.depth=1",
        "dataset.shape=[1,4,4]",
        "dataset.levels=5",
        "dataset.classes=3",
    ]
    kind = "sequence_classifier" if choice in ("mixer=nystrom", "mixer=efficient") else "transformer"
    node = OmegaConf.to_container(composed("train", f"model={kind}", choice, *words), resolve=True)["model"]
    model = make(node, "model")
    found = labels(model)
    decay = {
        id(p): part["weight_decay"]
        for part in build(model, *config("adamw")).param_groups
        for p in part["params"]
    }
    for label, parameter in found.items():
        name, _, kind = label.rpartition(".")[2].partition(":")
        weight = name in WEIGHTS and "Norm" not in kind and kind != "Embedding"
        assert decay[id(parameter)] == (0.01 if weight else 0.0), label
        assert not weight or parameter.ndim > 1, label


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (
            [{"match": "liner.weight", "lr": 1}],
            "'liner.weight' matches no parameter; the nearest are linear.weight:Linear",
        ),
        ([{"lr": 1}], "has no match"),
        ([{"match": "(", "lr": 1}], "no regular expression"),
        ([{"match": "linear", "lrr": 1}], "AdamW has no option 'lrr'; it has lr"),
    ],
)
def test_a_group_that_cannot_be_is_refused_in_a_sentence(groups, said):
    with pytest.raises(ValueError, match=said):
        build(Net(), config("adamw")[0], groups)


def test_what_cannot_be_fused_is_told():
    module = nn.ParameterDict({"a": nn.Parameter(torch.zeros(2, dtype=torch.complex64))})
    with pytest.raises(ValueError, match=r"a:ParameterDict is complex.*optimizer.fused=false"):
        build(module, config("adamw")[0])


def test_a_model_without_parameters_is_told():
    with pytest.raises(ValueError, match="ReLU has no parameter to train"):
        build(nn.ReLU(), config("sgd")[0])


def test_schedules_have_their_values():
    assert [constant(s, steps=9, warmup=4) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [linear(s, steps=6, warmup=2, final=0.5) for s in (0, 1, 2, 4, 6, 9)] == [
        0.5,
        1,
        1,
        0.75,
        0.5,
        0.5,
    ]
    assert cosine(2, steps=10, warmup=2, final=0.1) == 1
    assert cosine(6, steps=10, warmup=2, final=0.1) == pytest.approx(0.55)
    assert cosine(10, steps=10, warmup=2, final=0.1) == pytest.approx(0.1)
    stairs = [staircase(s, steps=10, at=[0.4, 0.7], factor=0.5) for s in (0, 3, 4, 6, 7, 9, 12)]
    assert stairs == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert [wsd(s, steps=100, warmup=2, decay=0.16) for s in (0, 2, 84, 88, 100)] == [0.5, 1, 1, 0.5, 0]


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "staircase", "wsd"])
def test_a_schedule_rises_once_falls_once_and_stays_positive(name):
    node = OmegaConf.to_container(OmegaConf.load(CONFIGS / "schedule" / f"{name}.yaml"))
    function = {f.__name__: f for f in (constant, cosine, linear, staircase, wsd)}[name]
    assert node.pop("_target_") == f"zoo.training.schedules.{name}"
    assert node.pop("_partial_") is True
    node["warmup"] = 10
    values = [function(s, steps=50, **node) for s in range(50)]
    assert values[:10] == [(s + 1) / 10 for s in range(10)]
    assert all(a >= b > 0 for a, b in pairwise(values[9:]))
    assert math.isfinite(function(0, steps=1, **{**node, "warmup": 0}))
