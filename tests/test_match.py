"""What a model costs, counted; and widths that are adjusted until models cost the same."""

import json

import pytest
import torch
from commands import TRANSFORMER, only, train
from conftest import composed
from torch import nn

from zoo.evaluation.cost import cost
from zoo.jobs.match import matched, nearest
from zoo.jobs.plan import moments


class Two(nn.Module):
    """Two linear maps with a tanh between, one frozen."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 5, bias=False)
        self.b = nn.Linear(5, 2, bias=False).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(4))

    def loss(self, x, y=None):
        return {"loss": self.b(self.a(x).tanh()).sum()}


def test_a_models_cost_is_what_one_counts_by_hand():
    told = cost(Two(), {"x": torch.randn(7, 3)})
    assert told["parameters"] == 15
    assert told["weights"] == 4 * (15 + 10 + 4)
    assert told["gradients"] == 4 * 15
    assert (
        told["activations"] == 4 * 5
    )  # tanh keeps what it gave; x is the data, and weights are counted already
    # forward, the gradient to the middle, that of the first weight
    assert told["flops_per_example"] == 2 * (3 * 5 + 5 * 2) + 2 * 5 * 2 + 2 * 3 * 5


@pytest.mark.parametrize(("optimizer", "count"), [("adamw", 2), ("adam", 2), ("sgd", 1), ("adamax", 2)])
def test_the_moments_of_an_optimizer_are_found_out(optimizer, count):
    config = composed("train", f"optimizer={optimizer}", *(["optimizer.momentum=0.9"] if count == 1 else []))
    from zoo.jobs.compose import plain

    assert moments(plain(config)["optimizer"]) == count


def test_the_nearest_width_is_found_though_some_are_refused():
    def even(w):
        if w % 4:
            raise ValueError("4 heads")
        return float(w * w)

    for target, width in ((10_000, 100), (10_300, 100), (10_700, 104), (17, 4), (10**8, 10_000)):
        for begin in (4, 64, 4096):
            assert nearest(even, begin, target, "it") == (width, width * width), (target, begin)


@pytest.mark.parametrize("mixer", ["softmax", "linear", "lstm"])
def test_models_of_equal_parameters(mixer):
    words = ("model=transformer", f"mixer={mixer}", "match=params", "match.target=100_000", "model.depth=1")
    config = matched(composed("train", *words))
    from zoo.config import build
    from zoo.jobs.compose import plain

    model = build(plain(config)["model"], "model")
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert config.match.reached == count
    assert count == pytest.approx(1e5, rel=0.1)
    assert config.match.value == config.model.dim
    for other in (-1, 1):  # no neighbour is nearer
        near = composed("train", *words[:2], *words[4:], f"model.dim={config.model.dim + other}")
        try:
            model = build(plain(near)["model"], "model")
        except ValueError:
            continue
        other_count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert abs(other_count - 1e5) >= abs(count - 1e5)


def test_what_was_reached_is_written_down_and_the_run_is_that_of_its_width(tmp_path):
    words = (*TRANSFORMER, "match=flops", "match.target=1e7", "trainer.max_steps=1", "evaluate.n=0")
    done = train(tmp_path, *words)
    assert done.code == 0, done.err
    told = json.loads((only(tmp_path) / "results.json").read_text())["config"]
    assert told["match"]["reached"] == pytest.approx(1e7, rel=0.1)
    assert f"model.dim={told['model']['dim']}" in done.out
    dim = told["match"]["value"]
    again = train(tmp_path, *TRANSFORMER, f"model.dim={dim}", "trainer.max_steps=1", "evaluate.n=0")
    assert "finished already" in again.out
    shown = train(tmp_path, "-m", *words, "mixer=softmax,linear", "dry_run=true")
    assert shown.code == 0, shown.out + shown.err
    assert f"model.dim={dim}" in shown.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["match.target=1e5", "match.width=model.latnet"], "match.width=model.latnet"),
        (["match.target=1e5", "match.width=model.beta"], "a width is a whole number"),
        (["match.target=0", "match.width=model.latent"], "match.target=0"),
        (["match.target=10", "match.width=model.latent"], "match.within="),
        (["match.target=1e5", "match.width=dataset.sizes.train"], "do not depend on it"),
        (["match.width=model.latent"], "match.target=... must be given"),
    ],
)
def test_what_cannot_be_matched_is_refused(tmp_path, words, told):
    done = train(tmp_path, "match=params", *words)
    assert done.code == 1
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 1
