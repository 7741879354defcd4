"""Training for so many floating-point operations."""

import json

import torch
from commands import only, run, train
from torch import nn

from zoo.evaluation.cost import training_flops

# the VAE of the commands on digits of 64 pixels: 64 x 8 + 8 x 4 multiplications to z, 2 x 8 + 8 x 64 F back


class Linear(nn.Module):
    """3 x 5 multiplications an example, and a count of its calls."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 5))
        self.calls = 0

    def loss(self, x, y=None):
        self.calls += 1
        return {"loss": (x @ self.weight).sum()}


def test_a_linear_map_costs_its_products_and_those_of_its_gradient():
    model = Linear()
    # x needs no gradient, so there are two products: of the output, and of the weight's gradient
    assert training_flops(model, {"x": torch.randn(7, 3)}) == 2 * 2 * 3 * 5
    assert model.calls == 0
    assert model.weight.grad is None


def test_steps_are_as_many_as_the_operations_pay_for(tmp_path):
    # three times what one step of 64 examples costs, and a little more
    each = 2 * 3 * (64 * 8 + 8 * 4 + 2 * 8 + 8 * 64 * 30) - 2 * 64 * 8  # x needs no gradient
    done = train(tmp_path, f"train_flops={3.2 * 64 * each}", "trainer.val_check_interval=2")
    assert done.code == 0, done.err
    config = json.loads((only(tmp_path) / "results.json").read_text())["config"]
    assert config["trainer"]["max_steps"] == 3
    assert config["trainer"]["val_check_interval"] == 2  # half of 4, as it was


def test_a_budget_is_the_run_of_its_steps(tmp_path):
    assert train(tmp_path, "train_flops=1e9").code == 0
    folder = only(tmp_path)
    steps = json.loads((folder / "results.json").read_text())["steps"]
    again = train(tmp_path, f"trainer.max_steps={steps}", f"trainer.val_check_interval={round(steps / 2)}")
    assert "finished already" in again.out, again.out + again.err


def test_too_few_operations_are_refused(tmp_path):
    done = train(tmp_path, "train_flops=1000")
    assert done.code == 1
    assert "train_flops=1000" in done.err
    assert "try more" in done.err
    assert not list(tmp_path.glob("*/identity.json"))
    assert run("train", "train_flops=much").code == 1
