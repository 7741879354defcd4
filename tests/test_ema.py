"""The average is of the weights, of nothing else, and nobody takes it for the raw ones."""

import lightning.pytorch as pl
import pytest
import torch
from tiny_run import Noisy, difference, final, train
from torch import nn

from zoo.jobs.fit import averages
from zoo.training.checkpoint_files import load, newest
from zoo.training.ema import EMA


class Follows(pl.Callback):
    """The average by its definition, in a loop; and the buffer, and what validation sees."""

    def __init__(self, decay, warm_up=False):
        self.decay, self.warm_up = decay, warm_up
        self.average, self.validated = None, []

    def on_train_start(self, trainer, pl_module):
        self.average = {name: w.detach().clone() for name, w in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        t = trainer.global_step
        d = min(self.decay, (1 + t) / (10 + t)) if self.warm_up else self.decay
        for name, w in pl_module.named_parameters():
            self.average[name] = d * self.average[name] + (1 - d) * w.detach()
        self.raw = {name: w.detach().clone() for name, w in pl_module.named_parameters()}
        self.calls = pl_module.model.calls.clone()

    def on_validation_batch_start(self, trainer, pl_module, *args):
        weights = dict(pl_module.named_parameters())
        self.validated.append(all(torch.allclose(w, self.average[n]) for n, w in weights.items()))
        assert pl_module.model.calls == self.calls


@pytest.mark.parametrize(("accumulate", "warm_up"), [(1, False), (2, False), (1, True)])
def test_the_average_is_what_its_equation_says(tmp_path, accumulate, warm_up):
    folder, follows = tmp_path / "checkpoints", Follows(0.9, warm_up)
    own = (follows, EMA(0.9, warm_up=True)) if warm_up else (follows,)
    trainer = train(folder, ema=not warm_up, accumulate=accumulate, callbacks=own)
    assert follows.validated
    assert all(follows.validated)
    checkpoint = load(newest(folder)[0])
    for name, w in trainer.lightning_module.named_parameters():
        torch.testing.assert_close(checkpoint["state_dict"][name], follows.average[name])
        torch.testing.assert_close(w.detach(), follows.average[name])
        assert torch.equal(checkpoint["raw"][name], follows.raw[name])
    # the buffer counts micro-batches, and is no average of counts
    assert checkpoint["state_dict"]["model.calls"] == follows.calls == 20 * accumulate


def test_an_average_changes_nothing_of_the_training(tmp_path):
    train(tmp_path / "a" / "checkpoints")
    train(tmp_path / "b" / "checkpoints", ema=False)
    a, b = final(tmp_path / "a" / "checkpoints"), final(tmp_path / "b" / "checkpoints")
    assert not difference(a["raw"], {name: b["state_dict"][name] for name in a["raw"]})


class Fails(pl.Callback):
    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        raise ZeroDivisionError


def test_an_error_in_validation_gives_the_raw_weights_back(tmp_path):
    follows, kept = Follows(0.9), {}

    class Keeps(pl.Callback):
        def on_exception(self, trainer, pl_module, exception):
            kept.update({name: w.detach().clone() for name, w in pl_module.named_parameters()})

    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "checkpoints", callbacks=(follows, Fails(), Keeps()))
    assert not difference(follows.raw, kept)


def test_evaluation_after_training_sees_the_average(tmp_path):
    follows = Follows(0.9)
    trainer = train(tmp_path / "checkpoints", callbacks=(follows,))
    before = len(follows.validated)
    trainer.validate(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)
    assert len(follows.validated) > before
    assert all(follows.validated)


def test_a_tied_weight_is_saved_averaged_under_both_names():
    class Tied(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight

    module, ema = Tied(), EMA(0.5)
    ema.on_fit_start(None, module)
    start = module.a.weight.detach().clone()
    with torch.no_grad():
        module.a.weight += 1
    ema.on_train_batch_end(type("Trainer", (), {"global_step": 1}), module)
    checkpoint = {"state_dict": module.state_dict()}
    ema.on_save_checkpoint(None, module, checkpoint)
    for name in ("a.weight", "b.weight"):
        torch.testing.assert_close(checkpoint["state_dict"][name], start + 0.5)


def test_a_decay_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"ema=1.0 is outside \[0, 1\)"):
        EMA(1.0)


def test_a_frozen_weight_is_not_averaged(tmp_path):
    module = pl.LightningModule()
    module.model = Noisy()
    module.model.net[0].requires_grad_(False)
    ema = EMA(0.5)
    ema.on_fit_start(None, module)
    assert set(ema.average) == {"model.net.3.weight", "model.net.3.bias"}


def test_a_config_asks_for_an_average_by_a_decay_or_with_its_warm_up():
    assert averages(None) == []
    assert [(a.decay, a.warm_up) for a in averages(0.9)] == [(0.9, False)]
    assert [(a.decay, a.warm_up) for a in averages({"decay": 0.9, "warm_up": True})] == [(0.9, True)]
    for wrong in (
        "abc",
        True,
        {"warm_up": True},
        {"decay": 0.9, "warmup": True},
        {"decay": 0.9, "warm_up": 3},
    ):
        with pytest.raises(ValueError, match=r"ema=.*takes a decay"):
            averages(wrong)
