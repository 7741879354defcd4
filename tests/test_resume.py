"""A run that was interrupted anywhere and started again ends bitwise where the unbroken one does."""

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from tiny_run import difference, ended, final, forked, metrics, train

from zoo.training.checkpoint_files import load, newest, steps
from zoo.training.checkpoints import Checkpoints


class Seen(pl.Callback):
    """Which examples each micro-batch had, by the first digits of their numbers before the blur."""

    def __init__(self) -> None:
        self.batches: dict[tuple[int, int], Any] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches[trainer.current_epoch, batch_idx] = batch["x"].clone()


def resumed_from(source: Path, whole: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """Go on from one checkpoint in a folder of its own, where the metrics of the whole run lie already."""
    folder.mkdir(parents=True)
    shutil.copy(source, folder)
    if (whole / "best.ckpt").exists():
        shutil.copy(whole / "best.ckpt", folder)
    shutil.copy(whole.parent / "metrics.csv", folder.parent)
    trainer = train(folder, checkpoint=folder / source.name, **options)
    assert (
        trainer.fit_loop.epoch_loop._batches_that_stepped == trainer.global_step
    )  # what other loggers count by
    return final(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 1, "val_every": 3},
        {"accumulate": 2, "val_every": 4},
        {"accumulate": 3, "val_every": 1.0},
        {"accumulate": 1, "val_every": 1.0, "epochs": 2, "ema": False},
    ],
    ids=str,
)
def test_every_step_can_be_resumed_from(tmp_path, options):
    """Also an epoch's first and last batch, and the last epoch; each under another seed of the process."""
    whole = tmp_path / "whole" / "checkpoints"
    options = {"every": 1, "keep": None, "steps": 14, **options}
    train(whole, **options)
    expected = final(whole)
    saved = steps(whole)
    assert len(saved) == expected["place"]["step"] == 14
    for i, path in enumerate(saved):
        folder = tmp_path / str(i) / "checkpoints"
        found = resumed_from(path, whole, folder, process_seed=i + 1, **options)
        assert not difference(expected, found), path


def test_a_resumed_run_sees_the_same_examples(tmp_path):
    whole, seen, again = tmp_path / "a" / "checkpoints", Seen(), Seen()
    train(whole, every=1, keep=None, callbacks=(seen,))
    start = whole / "step-00000010.ckpt"
    resumed_from(start, whole, tmp_path / "b" / "checkpoints", callbacks=(again,), process_seed=9)
    rest = {place: batch for place, batch in seen.batches.items() if place >= (1, 3)}
    assert len(rest) == 10
    assert not difference(rest, again.batches)


def test_workers_change_nothing_of_a_resumed_run(tmp_path):
    whole = tmp_path / "whole" / "checkpoints"
    train(whole, every=1, keep=None)
    start = whole / "step-00000009.ckpt"
    found = resumed_from(
        start, whole, tmp_path / "a" / "checkpoints", every=1, keep=None, workers=2, process_seed=3
    )
    assert not difference(final(whole), found)


def test_validation_and_checkpoints_change_no_bit_of_the_weights(tmp_path):
    often, never = tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints"
    train(often, every=1, val_every=1)
    train(never, every=None, trainer_options={"limit_val_batches": 0})
    a, b = load(newest(often)[0]), load(newest(never)[0])
    assert not difference([a["state_dict"], a["raw"]], [b["state_dict"], b["raw"]])


@pytest.mark.parametrize("ema", [True, False])
def test_a_finished_run_trains_no_step_and_keeps_its_weights(tmp_path, ema):
    folder = tmp_path / "checkpoints"
    first = train(folder, ema=ema).lightning_module.state_dict()
    before, files = final(folder), {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    seen = Seen()
    again = train(folder, ema=ema, callbacks=(seen,)).lightning_module.state_dict()
    assert not seen.batches
    assert not difference(first, again)
    assert not difference(before, final(folder))
    assert files == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_no_checkpoint_stands_inside_an_accumulation_window(tmp_path):
    folder = tmp_path / "checkpoints"
    train(folder, accumulate=3, every=1, keep=None, val_every=1.0)
    for path in steps(folder):
        assert load(path)["place"]["batch"] % 3 == 0


class SavesInside(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx % 2 == 0:
            trainer.save_checkpoint(trainer.checkpoint_callback.folder / "mine.ckpt")


def test_a_checkpoint_inside_an_accumulation_window_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="lose half a gradient"):
        train(tmp_path / "checkpoints", accumulate=2, callbacks=(SavesInside(),))
    assert not (tmp_path / "checkpoints" / "mine.ckpt").exists()


class TimeUp(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.fit_loop.total_batch_idx == 3


def test_a_time_limit_ends_training_between_steps_only(tmp_path):
    whole, folder = tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints"
    train(whole, accumulate=3, val_every=3)
    train(folder, accumulate=3, val_every=3, callbacks=(TimeUp(),))
    assert load(newest(folder)[0])["place"] == {"epoch": 0, "batch": 6, "step": 2}
    train(folder, accumulate=3, val_every=3)
    assert not difference(final(whole), final(folder))


def test_validation_inside_an_accumulation_window_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"try trainer.val_check_interval=4"):
        train(tmp_path / "checkpoints", accumulate=2, val_every=3)


def test_metrics_have_each_step_once_and_in_order(tmp_path):
    folder = tmp_path / "checkpoints"
    train(folder, every=3, steps=10)
    with open(tmp_path / "metrics.csv", "a") as file:  # what a killed run wrote after its last checkpoint
        file.write("11,train/loss,0.5\n12,train/loss,0.5\n13,tra")
    train(folder, every=3, steps=20)
    names = {name for _, name, _ in metrics(folder)[1:]}
    assert {"train/loss", "val/loss", "train/error"} <= names
    for name in names:
        numbers = [int(step) for step, other, _ in metrics(folder) if other == name]
        assert numbers == list(range(numbers[0], 21, numbers[1] - numbers[0])), name


def test_a_run_killed_before_its_first_checkpoint_begins_its_metrics_anew(tmp_path):
    whole, folder = tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints"
    train(whole)
    folder.mkdir(parents=True)
    (folder.parent / "metrics.csv").write_text("step,name,value\n2,train/loss,0.5\n4,tr")
    train(folder)
    assert metrics(whole) == metrics(folder)


def test_best_is_the_lowest_validation_loss_also_across_resumes(tmp_path):
    folder = tmp_path / "checkpoints"
    train(folder, steps=9, learning_rate=0.3)
    train(folder, steps=20, learning_rate=0.3)
    losses = {int(step): float(value) for step, name, value in metrics(folder) if name == "val/loss"}
    lowest = min(losses, key=losses.get)
    best = load(folder / "best.ckpt")
    assert best["place"]["step"] == lowest
    for path in (folder / "best.ckpt", newest(folder)[0]):
        stored = load(path)["callbacks"][Checkpoints.__qualname__]
        assert stored == {"best": pytest.approx(losses[lowest]), "best_step": lowest}


def test_best_is_made_good_if_the_run_was_killed_before_naming_it(tmp_path):
    whole = tmp_path / "a" / "checkpoints"
    train(whole, every=1, keep=None)
    start = whole / f"step-{load(whole / 'best.ckpt')['place']['step']:08d}.ckpt"
    folder = tmp_path / "b" / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(start, folder)
    (folder / "best.ckpt").write_bytes((whole / "step-00000001.ckpt").read_bytes())
    train(folder, checkpoint=folder / start.name)
    assert not difference(load(whole / "best.ckpt")["state_dict"], load(folder / "best.ckpt")["state_dict"])


def test_the_best_one_serves_where_all_numbered_ones_are_damaged(tmp_path):
    whole, folder = tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints"
    train(whole)
    train(folder, steps=20)
    for path in steps(folder):
        path.write_bytes(b"")
    train(folder)
    assert not difference(final(whole), final(folder))


def test_the_newest_are_kept_and_damaged_later_ones_do_not_count(tmp_path):
    folder = tmp_path / "checkpoints"
    train(folder, steps=10, every=1, keep=2)
    assert [path.name for path in steps(folder)] == ["step-00000010.ckpt", "step-00000009.ckpt"]
    (folder / "step-00000010.ckpt").write_bytes(b"")
    (folder / "step-00000099.ckpt").write_bytes(b"")
    train(folder, steps=12, every=1, keep=2)
    assert newest(folder)[0].name == "step-00000012.ckpt"
    assert [path.name for path in steps(folder)[1:]] == ["step-00000012.ckpt", "step-00000011.ckpt"]


def killed_again_and_again(folder: Path, chance: random.Random, kills: int, **options: Any) -> int:
    """Start, SIGKILL after a while, up to so many times; then let it finish. How many kills there were."""
    done = 0
    for attempt in range(kills + 1):
        pid = forked(lambda seed=attempt: train(folder, process_seed=seed, **options))
        if attempt < kills:
            time.sleep(chance.uniform(0.05, 0.4))
            os.kill(pid, signal.SIGKILL)
        code = ended(pid)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        done += 1
    assert code == 0
    return done


OPTIONS = [
    {"accumulate": 1, "val_every": 5, "workers": 2},
    {"accumulate": 1, "val_every": 5},
    {"accumulate": 2, "val_every": 6},
    {"accumulate": 3, "val_every": 9},
    {"accumulate": 2, "val_every": 6, "workers": 2},
]


def chain(tmp_path: Path, number: int, kills: int) -> int:
    options = {**OPTIONS[number % len(OPTIONS)], "steps": 150, "every": 3}
    whole, folder = tmp_path / "whole" / "checkpoints", tmp_path / "killed" / "checkpoints"
    train(whole, **{**options, "workers": 0})
    done = killed_again_and_again(folder, random.Random(number), kills, **options)
    assert not difference(final(whole), final(folder))
    assert not list(folder.glob(".*"))
    return done


@pytest.mark.parametrize("number", range(3))
def test_kill_9_at_random_moments_changes_nothing(tmp_path, number):
    assert chain(tmp_path, number, 2 + number % 2) > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3, 23))
def test_kill_9_at_random_moments_changes_nothing_twenty_times(tmp_path, number):
    assert chain(tmp_path, number, 6) > 0
