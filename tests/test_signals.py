"""A signal ends a run between two steps, saved, with the shell's exit code; a last line says how to go on."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from tiny_run import difference, ended, final, forked, train

from zoo.training import checkpoint_files as files
from zoo.training.checkpoint_files import load, newest
from zoo.training.stopping import Stopping


class Kick(pl.Callback):
    """Sends this process a signal, or several, at a moment of step 5 or of the validation after step 11."""

    def __init__(self, moment: str, *numbers: int, group: bool = False) -> None:
        self.moment, self.numbers, self.group = moment, list(numbers), group

    def send(self) -> None:
        while self.numbers:
            number = self.numbers.pop(0)
            os.killpg(0, number) if self.group else os.kill(os.getpid(), number)

    def on_before_backward(self, trainer, pl_module, loss):
        if self.moment == "step" and trainer.global_step == 4:
            self.send()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.moment == "optimizer" and trainer.global_step == 4:
            self.send()

    def on_validation_batch_start(self, trainer, pl_module, *args):
        if self.moment == "validation" and trainer.global_step == 11:
            self.send()
        if self.moment == "last validation" and trainer.global_step == 18:
            self.send()

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        if self.moment == "save" and trainer.global_step == 6:
            self.send()

    def on_train_epoch_end(self, trainer, pl_module):
        if self.moment == "epoch end":
            self.send()


def stopped(folder: Path, kick: Kick, **options: Any) -> tuple[int, str]:
    """Exit code and output of a run in a process of its own."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    output = folder.parent / "output"

    def work() -> None:
        os.setpgrp()
        sys.stdout = sys.stderr = output.open("w", buffering=1)
        os.dup2(sys.stdout.fileno(), 1)
        os.dup2(sys.stdout.fileno(), 2)
        train(folder, callbacks=(kick,), **options)

    code = ended(forked(work))
    return code, output.read_text()


MOMENTS = {"step": 5, "optimizer": 5, "validation": 11, "save": 7, "epoch end": 7, "last validation": 18}


@pytest.mark.parametrize(
    ("number", "code", "accumulate"), [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 2)]
)
@pytest.mark.parametrize(("moment", "step"), MOMENTS.items())
def test_a_signal_stops_between_steps_and_the_run_goes_on_bitwise(
    tmp_path, moment, step, number, code, accumulate
):
    whole, folder = tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints"
    options = {"accumulate": accumulate, "val_every": 4 * accumulate, "steps": 18}
    train(whole, **options)
    found, said = stopped(folder, Kick(moment, number), **options)
    assert found == code, said
    assert said.splitlines()[-1] == "go on with: again"
    assert "Traceback" not in said
    path, skipped = newest(folder)
    assert not skipped
    assert load(path)["place"]["step"] == step
    train(folder, process_seed=7, **options)
    assert not difference(final(whole), final(folder))


def test_a_stop_in_the_validation_at_an_epoch_s_end_goes_on_bitwise(tmp_path):
    whole, folder = tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints"

    class AtEpochEnd(Kick):
        def on_validation_batch_start(self, trainer, pl_module, *args):
            if trainer.global_step == 14:
                self.send()

    options = {"val_every": 1.0, "epochs": 2, "steps": 14}
    train(whole, **options)
    code, said = stopped(folder, AtEpochEnd("", signal.SIGTERM), **options)
    assert code == 143, said
    assert load(newest(folder)[0])["place"] == {"epoch": 1, "batch": 7, "step": 14}
    train(folder, **options)
    assert not difference(final(whole), final(folder))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_group_with_loader_workers_is_a_clean_stop_too(tmp_path, number, code):
    whole, folder = tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints"
    train(whole)
    found, said = stopped(folder, Kick("step", number, group=True), workers=2)
    assert found == code, said
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "go on with: again"
    train(folder, workers=2)
    assert not difference(final(whole), final(folder))


class Endless(pl.Callback):
    """A step that takes far too long, after two interrupts half a second apart."""

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            if os.fork() == 0:
                time.sleep(0.3)
                os.kill(os.getppid(), signal.SIGINT)
                os._exit(0)
            time.sleep(30)


def test_a_second_interrupt_ends_at_once_and_harms_no_checkpoint(tmp_path):
    whole, folder = tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints"
    train(whole)
    began = time.monotonic()
    code = ended(forked(lambda: train(folder, callbacks=(Endless(),))))
    assert time.monotonic() - began < 5
    assert code == -signal.SIGINT
    path, skipped = newest(folder)
    assert path.name == "step-00000004.ckpt"
    assert not skipped
    train(folder)
    assert not difference(final(whole), final(folder))


def test_a_second_interrupt_within_a_save_harms_no_checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    save = torch.save

    def interrupted(content, file):
        save(content, file)
        if content["place"]["step"] == 6:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(files.torch, "save", interrupted)
    assert ended(forked(lambda: train(folder))) == -signal.SIGINT
    path, skipped = newest(folder)
    assert load(path)["place"]["step"] == 4
    assert not skipped


def test_the_handlers_of_before_come_back(tmp_path):
    """A sweep trains several times in one process, and has handlers of its own."""
    mine = {number: lambda *_: None for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: signal.signal(number, handler) for number, handler in mine.items()}
    try:
        train(tmp_path / "a" / "checkpoints", steps=2)
        assert {number: signal.getsignal(number) for number in mine} == mine
        with pytest.raises(SystemExit) as stop:
            train(tmp_path / "b" / "checkpoints", callbacks=(Kick("step", signal.SIGTERM),))
        assert stop.value.code == 143
        assert {number: signal.getsignal(number) for number in mine} == mine
        train(tmp_path / "c" / "checkpoints", steps=2)  # and no flag is left
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_signal_to_one_process_stops_all_of_them(tmp_path):
    def one(rank: int) -> None:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=rank, world_size=2)
        stopping = Stopping("")
        trainer = type("Trainer", (), {"world_size": 2})
        with stopping:
            asked = []
            for step in range(4):
                if rank == 1 and step == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                asked.append(stopping.asked(trainer))
            os._exit(0 if asked == [False, False, True, True] else 9)

    children = [forked(lambda rank=rank: one(rank)) for rank in range(2)]
    assert [ended(child) for child in children] == [0, 0]
