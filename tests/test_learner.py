"""The learner logs true means, measures without touching the training, and says what a model lacks."""

import functools
import io
import random
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

from zoo.training.learner import Learner
from zoo.training.loaders import Loaders
from zoo.training.means import Means
from zoo.training.progress import Progress, duration
from zoo.training.schedules import linear


class Data:
    """n examples of 4 real numbers; x[:, 0] counts them."""

    def __init__(self, split, sizes):
        if split not in sizes:
            raise LookupError(f"no {split} split")
        self.x = torch.randn(sizes[split], 4, generator=torch.Generator().manual_seed(0))
        self.x[:, 0] = torch.arange(sizes[split])

    def __len__(self):
        return len(self.x)

    def __getitem__(self, indices):
        return {"x": self.x[indices] + 0.1 * torch.rand(1)}


class Model(nn.Module):
    """Draws from all generators in its loss, in training and in validation."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 4))
        self.steps = []

    def at(self, step):
        self.steps.append(step)

    def loss(self, x, y=None):
        noise = torch.randn_like(x) * random.random() * np.random.rand()
        loss = ((self.net(x / 100 + noise) - noise) ** 2).mean()
        return {"loss": loss, "number": x[:, 0].floor().mean()}

    def statistics(self, x, y=None):
        return {"count": torch.tensor(len(x)), "total": x[:, 0].floor().sum()}

    def summarize(self, sums):
        return {"mean_number": float(sums["total"] / sums["count"])}


class Log(DummyLogger):
    """Keeps what is logged: [(step, metrics)], without what depends on the clock."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, {k: v for k, v in metrics.items() if "per_second" not in k}))


class SaveAt(Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step and not trainer.fit_loop._should_accumulate():
            trainer.save_checkpoint(self.path)


def fit(
    model=None,
    *,
    steps=20,
    sizes=None,
    batch_size=4,
    validate=None,
    accumulate=1,
    callbacks=(),
    resume=None,
    num_workers=0,
    **options,
):
    """Train a model on 23 examples: (learner, log, trainer)."""
    torch.manual_seed(0)
    learner = Learner(
        model or Model(),
        **{"optimizer": functools.partial(torch.optim.AdamW, lr=0.01, fused=True), "log_every": 5, **options},
    )
    sizes = sizes or {"train": 23, "val": 101}
    loaders = Loaders(
        functools.partial(Data, sizes=sizes),
        {},
        batch_size=batch_size,
        seed=1,
        num_workers=num_workers,
        accumulate=accumulate,
    )
    log = Log()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=log,
        callbacks=list(callbacks),
        accumulate_grad_batches=accumulate,
        val_check_interval=validate,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if validate else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if resume:
            state = torch.load(resume, weights_only=True)
            batch = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]
            loaders.start(state["epoch"], batch)
        trainer.fit(learner, loaders, ckpt_path=resume)
    return learner, log, trainer


def weights(learner):
    return torch.cat([p.detach().flatten() for p in learner.model.parameters()])


def test_validation_changes_no_bit_of_the_training():
    without, log, _ = fit()
    along, other, _ = fit(validate=3)
    assert torch.equal(weights(without), weights(along))
    assert [line for line in other.lines if "train/loss" in line[1]] == log.lines
    assert len(other.lines) > len(log.lines)


def test_training_is_the_same_twice_and_another_with_another_seed():
    one, _, _ = fit()
    assert torch.equal(weights(one), weights(fit()[0]))
    assert not torch.equal(weights(one), weights(fit(seed=5)[0]))


def test_validation_weighs_examples_not_batches():
    _, log, trainer = fit(validate=10)
    step, metrics = next(line for line in log.lines if "val/loss" in line[1])
    assert step == 10
    assert metrics["val/number"] == 50.0  # 101 examples, 0 to 100, in batches of 4: the last has one
    assert metrics["val/mean_number"] == 50.0
    assert float(trainer.callback_metrics["val/number"]) == 50.0
    assert "val/loss" in trainer.callback_metrics


def test_training_is_logged_every_so_many_steps_and_at_its_end():
    _, log, _ = fit(steps=12)
    assert [step for step, _ in log.lines] == [5, 10, 12]
    assert set(log.lines[0][1]) == {"train/loss", "train/number", "train/lr"}


def test_a_logged_mean_is_over_the_examples_of_the_steps_between():
    class Fixed(Model):
        def loss(self, x, y=None):
            return {"loss": self.net(x).mean() * 0 + x[:, 0].floor().mean()}

    for accumulate in (1, 2):
        _, log, _ = fit(Fixed(), steps=5, sizes={"train": 20}, accumulate=accumulate)
        assert log.lines == [(5, {"train/loss": 9.5, "train/lr": 0.01})]  # one epoch: 0 to 19


def test_the_rate_logged_is_that_of_the_step_just_done():
    _, log, _ = fit(steps=4, log_every=1, schedule=linear, accumulate=2)
    assert [metrics["train/lr"] for _, metrics in log.lines] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


def test_the_model_is_told_the_steps_done_before_every_batch_and_after_every_step():
    learner, _, _ = fit(steps=3, accumulate=2)
    assert learner.model.steps == [0, 0, 1, 1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("at", [2, 5, 7])
def test_a_resumed_run_logs_the_same_and_ends_the_same(at, accumulate, tmp_path):
    path = tmp_path / "a.ckpt"
    whole, log, _ = fit(steps=12, accumulate=accumulate, callbacks=[SaveAt(at, path)], config={"seed": 1})
    torch.manual_seed(77)
    resumed, rest, _ = fit(steps=12, accumulate=accumulate, resume=path)
    assert torch.equal(weights(whole), weights(resumed))
    assert [line for line in log.lines if line[0] > at] == rest.lines
    assert torch.load(path, weights_only=True)["config"] == {"seed": 1}


@pytest.mark.parametrize("at", [5, 8])
def test_a_resumed_run_with_workers_is_the_unbroken_one_without(at, tmp_path):
    whole, log, _ = fit(steps=12, callbacks=[SaveAt(at, tmp_path / "a.ckpt")])
    resumed, rest, _ = fit(steps=12, resume=tmp_path / "a.ckpt", num_workers=2)
    assert torch.equal(weights(whole), weights(resumed))
    assert [line for line in log.lines if line[0] > at] == rest.lines


def test_bf16_clips_with_a_fused_optimizer():
    learner = Learner(Model(), optimizer=functools.partial(torch.optim.AdamW, fused=True))
    loaders = Loaders(functools.partial(Data, sizes={"train": 8}), {}, batch_size=4, seed=0)
    norms = []

    class Norms(Callback):
        def on_before_zero_grad(self, trainer, learner, optimizer):
            grads = [p.grad for p in learner.parameters() if p.grad is not None]
            norms.extend([float(torch.nn.utils.get_total_norm(grads))] if grads else [])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(
            accelerator="cpu",
            precision="bf16-mixed",
            gradient_clip_val=1e-3,
            max_steps=3,
            logger=False,
            callbacks=[Norms()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        ).fit(learner, loaders)
    assert norms == pytest.approx([1e-3] * len(norms), rel=1e-2)
    assert norms


def test_terms_that_come_and_go_are_averaged_over_the_batches_that_had_them():
    means = Means()
    means.add({"a": torch.tensor(1.0), "b": torch.tensor(5.0)}, 3)
    means.add({"a": torch.tensor(3.0)}, 1)
    state = means.state_dict(lambda t: t)
    assert means.read(lambda t: t) == ({"a": 1.5, "b": 5.0}, 4)
    again, other = Means(), Means()
    again.load_state_dict(state)
    other.load_state_dict(state, rank=1)
    assert again.read(lambda t: t) == means.read(lambda t: t)
    assert all(not total.any() for total in other.sums.values())


class Wrong(nn.Linear):
    def __init__(self, gives):
        super().__init__(1, 1)
        self.gives = gives

    def loss(self, x, y=None):
        return self.gives


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        ({"nats": torch.tensor(1.0)}, "Wrong.loss gave nats, without 'loss'"),
        (torch.tensor(1.0), "Wrong.loss gave Tensor; give a dict"),
        ({"loss": torch.ones(3)}, r"'loss' as a tensor of shape \(3,\); give a scalar"),
        ({"loss": torch.tensor(1.0), "kl": 2.0}, "'kl' as float; give a scalar"),
    ],
)
def test_a_loss_that_is_not_one_is_refused_in_a_sentence(gives, said):
    with pytest.raises(ValueError, match=said):
        fit(Wrong(gives))


def test_a_model_without_a_loss_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="Linear has no method loss"):
        fit(nn.Linear(1, 1))


def test_a_schedule_without_a_horizon_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"set trainer\.max_steps"):
        fit(schedule=linear, steps=-1)


def test_progress_is_plain_lines_where_nobody_looks():
    stream = io.StringIO()
    fit(steps=10, validate=5, callbacks=[Progress(plain=0.0, stream=stream)])
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert lines[0].startswith("step 1/10  loss ")
    assert "examples/s" in lines[0]
    assert sum("val/loss" in line for line in lines) == 2
    assert lines[-1].startswith("step 10/10")


def test_progress_redraws_a_terminals_line_a_few_times_a_second_only():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    fit(steps=20, callbacks=[Progress(interval=60.0, stream=stream)])
    assert stream.getvalue().count("\r") == 1  # the end
    assert [duration(s) for s in (5.2, 65, 3723)] == ["0:05", "1:05", "1:02:03"]
