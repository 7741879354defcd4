"""A checkpoint under its final name is whole, whatever happened; a damaged one is refused with a reason."""

import contextlib
import errno
import io
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from tiny_run import ended, forked, metrics, train

from zoo.training import checkpoint_files as files
from zoo.training.checkpoint_files import clean, good, load, newest, write
from zoo.training.checkpoints import SafeIO
from zoo.training.metrics_log import MetricsLog

CONTENT = {"state_dict": {"weight": torch.arange(5000.0)}, "name": "a run", "step": 3}


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def one_short(data: bytes) -> bytes:
    return data[:-1]


def zero_tail(data: bytes) -> bytes:
    return data[:-500] + bytes(500)


def flipped_in_data(data: bytes) -> bytes:
    at = data.index(torch.arange(5000.0)[2000:2010].numpy().tobytes())
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def flipped_in_pickle(data: bytes) -> bytes:
    return data.replace(b"a run", b"b run", 1)


def text(data: bytes) -> bytes:
    return b"epoch 3, all is well\n"


def lfs(data: bytes) -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9\n"


DAMAGE = {
    lambda data: b"": "empty",
    cut: "cut short or damaged",
    one_short: "cut short or damaged",
    zero_tail: "cut short or damaged",
    flipped_in_data: "wrong checksum",
    flipped_in_pickle: "wrong checksum",
    text: "some other kind of file",
    lfs: "git lfs pull",
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.items(), ids=[*DAMAGE.values()])
def test_a_damaged_checkpoint_is_refused_with_the_reason(tmp_path, damage, reason):
    path = tmp_path / "step-00000003.ckpt"
    write(CONTENT, path)
    assert good(path) is None
    path.write_bytes(damage(path.read_bytes()))
    assert reason in good(path)
    assert "\n" not in good(path)
    with pytest.raises(ValueError, match=reason) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a folder"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "no.ckpt")


class Command:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_never_runs(tmp_path):
    torch.save({"state_dict": Command(tmp_path / "ran")}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="run code"):
        load(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="run code"):
        SafeIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("odd", [np.float64(1.0), Path("x"), {"deep": [np.zeros(3)]}, range(3)], ids=repr)
def test_what_could_not_be_loaded_again_is_not_saved(tmp_path, odd):
    with pytest.raises(TypeError, match=r"its config\.lr.* is a (numpy|pathlib|builtins)"):
        write({"config": {"lr": odd}}, tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_training_s_checkpoints_hold_plain_values_only(tmp_path):
    train(tmp_path / "checkpoints", steps=4)
    for path in (tmp_path / "checkpoints").iterdir():
        assert torch.load(path, weights_only=True)["place"]["step"] in (3, 4)


def test_the_newest_good_one_is_found_and_the_skipped_are_named(tmp_path):
    for step in (1, 2, 10):
        write(CONTENT, tmp_path / f"step-{step:08d}.ckpt")
    write(CONTENT, tmp_path / "best.ckpt")
    bad = tmp_path / "step-00000010.ckpt"
    bad.write_bytes(cut(bad.read_bytes()))
    path, [(skipped, reason)] = newest(tmp_path)
    assert path.name == "step-00000002.ckpt"
    assert skipped == bad
    assert "damaged" in reason
    for old in files.steps(tmp_path):
        old.write_bytes(b"")
    assert newest(tmp_path)[0].name == "best.ckpt"
    (tmp_path / "best.ckpt").unlink()
    assert newest(tmp_path)[0] is None
    assert newest(tmp_path / "nowhere") == (None, [])


def test_leftovers_of_killed_runs_are_removed_at_the_next_start(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / ".step-00000004.ckpt.tmp-77").write_bytes(b"half")
    train(folder, steps=4)
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.ckpt",
        "step-00000003.ckpt",
        "step-00000004.ckpt",
    ]


class FullDisk(io.FileIO):
    def write(self, data):
        if self.tell() > 5000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_on_a_full_disk_the_old_checkpoint_stays_and_the_sentence_says_so(tmp_path, monkeypatch):
    write(CONTENT, tmp_path / "step-00000001.ckpt")
    disk = {"wb": lambda path: FullDisk(path, "w"), "rb": io.FileIO}
    monkeypatch.setattr(files, "open", lambda path, mode: disk[mode](path), raising=False)
    for target in ("step-00000001.ckpt", "step-00000002.ckpt"):
        with pytest.raises(
            OSError, match=r"needs about 20000 bytes and \d+ are free; .*00001.ckpt is still good"
        ):
            files.write(CONTENT, tmp_path / target)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.ckpt"]
    assert good(tmp_path / "step-00000001.ckpt") is None


def small_disk(tmp_path: Path) -> Path:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here; the same is tested with a disk that pretends to be full")
    return folder


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1000))


def test_a_training_on_a_disk_that_fills_up_keeps_its_last_checkpoint(tmp_path):
    disk = small_disk(tmp_path)
    try:
        train(disk / "checkpoints", steps=2, every=1, width=2000, val_every=1.0)
        before = newest(disk / "checkpoints")[0]
        with pytest.raises(OSError, match=r"the disk is full.*bytes and \d+ are free.*still good"):
            train(disk / "checkpoints", steps=9, every=1, width=2000, keep=None, val_every=1.0)
        path, skipped = newest(disk / "checkpoints")
        assert path >= before
        assert not skipped
        assert not list((disk / "checkpoints").glob(".*"))
        fill(disk / "rest")
        log = MetricsLog(disk / "metrics.csv")
        lines = metrics(disk / "checkpoints")
        with pytest.raises(OSError, match=r"metrics.csv cannot be written \(No space left on device\)"):
            log.log_metrics({f"train/{i}": 0.123456789 for i in range(5000)}, 1)
        assert log.path.read_bytes().endswith(b"\n")
        assert metrics(disk / "checkpoints")[: len(lines)] == lines
        assert good(path) is None
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_other_failures_are_not_called_a_full_disk(tmp_path):
    (tmp_path / "a.ckpt").mkdir()
    with pytest.raises(IsADirectoryError):
        write(CONTENT, tmp_path / "a.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def save_for_ever(folder: Path, numbers: int) -> None:
    content = {"state_dict": {"weight": torch.zeros(numbers)}}
    for step in range(1, 10**6):
        content["state_dict"]["weight"].fill_(step)
        write(content, folder / f"step-{step:08d}.ckpt")
        write(content, folder / "best.ckpt")
        for old in files.steps(folder)[2:]:
            old.unlink()


def killed_while_saving(folder: Path, numbers: int, kills: int, chance: random.Random) -> None:
    for _ in range(kills):
        pid = forked(lambda: save_for_ever(folder, numbers))
        time.sleep(0.05 + chance.uniform(0, numbers / 1e8))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        path, skipped = newest(folder)
        assert not skipped
        assert path is None or load(path)["state_dict"]["weight"].unique().numel() == 1
        clean(folder)
        assert not list(folder.glob(".*"))


@pytest.fixture
def other_disk(tmp_path):
    """A folder on another file system than the one for temporary files, where there is one."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    folder = memory / f"zoo-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_kill_9_while_saving_leaves_no_bad_file(other_disk):
    killed_while_saving(other_disk, 2_000_000, 5, random.Random(0))
    assert newest(other_disk)[0]


@pytest.mark.slow
def test_kill_9_while_saving_80_mb_leaves_no_bad_file(other_disk):
    killed_while_saving(other_disk, 20_000_000, 20, random.Random(1))
    assert newest(other_disk)[0]


@pytest.mark.parametrize(("bad_at", "accumulate", "step"), [(7, 1, 7), (6, 2, 3)])
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(tmp_path, bad_at, accumulate, step):
    folder = tmp_path / "checkpoints"
    with pytest.raises(FloatingPointError) as caught:
        train(folder, bad_at=bad_at, every=1, accumulate=accumulate)
    sentence = str(caught.value)
    assert sentence.startswith(
        f"the loss term decay is not finite at step {step} (micro-batch {bad_at - 1} of epoch 0"
    )
    assert "learning rate 0.0" in sentence
    assert f"step-{step - 1:08d}.ckpt" in sentence
    path, skipped = newest(folder)
    assert path.name == f"step-{step - 1:08d}.ckpt"
    assert not skipped
    assert all(w.isfinite().all() for w in load(path)["raw"].values())


class Poison(pl.Callback):
    """Makes a gradient, or a weight, bad at step 3."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_after_backward(self, trainer, pl_module):
        if self.what == "gradient" and trainer.global_step == 2:
            pl_module.model.net[0].weight.grad[0, 0] = float("inf")

    def on_train_batch_end(self, trainer, pl_module, *args):
        if self.what == "weight" and trainer.global_step == 3:
            pl_module.model.net[3].bias.data[0] = float("nan")


def test_a_gradient_that_is_not_finite_is_named(tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"^the gradient of model.net.0.weight is not finite at step 3"
    ):
        train(tmp_path / "checkpoints", callbacks=(Poison("gradient"),))


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path):
    folder = tmp_path / "checkpoints"
    with pytest.raises(FloatingPointError, match=r"model.net.3.bias is not finite after step 3"):
        train(folder, every=1, val_every=1.0, callbacks=(Poison("weight"),))
    assert newest(folder)[0].name == "step-00000002.ckpt"


def test_on_a_device_the_first_bad_step_is_noted_and_read_before_a_checkpoint(tmp_path, monkeypatch):
    """Without a GPU at hand: the loss is looked at as if it lay on one."""
    from zoo.training import finite

    monkeypatch.setattr(finite, "WAITS_FOR_NOTHING", ())
    with pytest.raises(FloatingPointError, match=r"is not finite at step 7"):
        train(
            tmp_path / "checkpoints",
            bad_at=7,
            every=9,
            val_every=1.0,
            trainer_options={"log_every_n_steps": 1000, "limit_val_batches": 0},
        )
    assert newest(tmp_path / "checkpoints")[0] is None
