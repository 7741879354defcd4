"""Stops as a user or a scheduler makes them: what was logged is whole, and the same command does what is missing."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

from commands import TINY, VAE, only, run
from conftest import ROOT

LONG = (
    "trainer.max_steps=4000",
    "trainer.val_check_interval=500",
    "checkpoint_every=1000",
    "trainer.log_every_n_steps=10",
)


def steps(folder):
    with open(folder / "metrics.csv") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["name"] == "train/loss"]


def history(folder):
    """The steps of train/loss in all that W&B wrote, by its own reader."""
    found = []
    wandb = os.path.join(os.path.dirname(sys.executable), "wandb")
    for offline in sorted((folder / "wandb").glob("offline-run-*")):
        done = subprocess.run(
            [wandb, "leet", "inspect", "--json", offline], capture_output=True, text=True, check=True
        )
        for line in done.stdout.splitlines():
            item = json.loads(line).get("history", {}).get("item", {})
            if "train/loss" in item:
                found.append(int(item["trainer/global_step"]))
    return found


def test_a_stop_leaves_the_metrics_and_wandb_whole(tmp_path):
    words = [*TINY, *VAE, *LONG, "logger=wandb", f"runs={tmp_path}", "evaluate.splits=[]", "evaluate.n=0"]
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words], stdout=subprocess.PIPE, text=True, env=environment
    )
    give_up = time.monotonic() + 120
    while not any(tmp_path.glob("*/metrics.csv")) and time.monotonic() < give_up:
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=120)
    folder = only(tmp_path)
    assert child.returncode == 143
    assert out.splitlines()[-1].endswith(f"resume={folder}")
    assert json.loads((folder / "results.json").read_text())["status"] == "stopped"
    logged = steps(folder)
    assert logged == list(range(10, logged[-1] + 1, 10))
    assert history(folder) == logged
    (offline,) = (folder / "wandb").glob("offline-run-*")
    assert offline.name.endswith(json.loads((folder / "identity.json").read_text())["identity"][:32])


def test_a_stop_ends_a_sweep_which_then_does_what_is_missing(tmp_path, monkeypatch):
    from zoo.training.learner import Learner

    words = ("-m", *TINY, *VAE, f"runs={tmp_path}", "seed=0,1,2", "evaluate.splits=[]", "evaluate.n=0")
    end, calls = Learner.on_validation_end, []

    def stop(self):
        end(self)
        calls.append(self.seed)
        if calls == [0, 0, 1]:  # in the midst of the second job
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Learner, "on_validation_end", stop)
    assert run("train", *words).code == 143
    monkeypatch.undo()
    statuses = [json.loads(path.read_text())["status"] for path in tmp_path.glob("*/results.json")]
    assert sorted(statuses) == ["finished", "stopped"]
    again = run("train", *words)
    assert again.code == 0, again.err
    assert again.out.count("is finished already") == 1
    assert again.out.count("goes on from") == 1
    assert len(list(tmp_path.glob("*/results.json"))) == 3


def test_another_number_of_threads_is_told_on_a_resume(tmp_path):
    words = (*TINY, *VAE, f"runs={tmp_path}", "evaluate.splits=[]", "evaluate.n=0")
    assert run("train", *words).code == 0
    folder = only(tmp_path)
    (folder / "results.json").unlink()
    about = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps(about | {"threads": 7}))
    done = run("train", f"resume={folder}")
    assert done.code == 0, done.err
    assert "it began with 7 threads" in done.err


def test_a_disk_without_room_is_refused_before_the_first_step(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("zoo.jobs.fit.shutil.disk_usage", lambda path: usage._replace(free=1000))
    done = run("train", *TINY, *VAE, f"runs={tmp_path}")
    assert done.code == 1
    assert "MB are free" in done.err
    assert not (only(tmp_path) / "metrics.csv").exists()
