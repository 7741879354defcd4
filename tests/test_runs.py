"""What makes two runs the same, and a run's folder: written whole, found anywhere, never mixed up."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from zoo.runs import DIGITS, Run, execution, find, identity, runs
from zoo.runs import folder as folders
from zoo.runs.identity import EXECUTION, defining

DATA = {"train": "aa", "val": "bb"}
SMALL = {"seed": 0, "model": {"_target_": "zoo.models.VAE", "latent": 2}}
WHOLE = {
    "seed": 0,
    "name": None,
    "runs": "runs",
    "data_dir": "data",
    "batch_size": 128,
    "num_workers": 0,
    "data_device": "cpu",
    "ema": None,
    "gradient_checkpointing": "none",
    "checkpoint_every": 1000,
    "keep": 2,
    "threads": None,
    "train_flops": None,
    "init": None,
    "resume": None,
    "rerun": False,
    "dry_run": False,
    "match": None,
    "optimize": "val/loss",
    "dataset": {
        "name": "digits",
        "shape": [1, 8, 8],
        "source": {"_target_": "zoo.data.MNIST", "root": "data"},
    },
    "model": {"_target_": "zoo.models.VAE", "latent": 2, "beta": 1.0},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.001, "groups": []},
    "schedule": {"_target_": "zoo.training.schedules.constant", "warmup": 0},
    "trainer": {
        "accelerator": "auto",
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "timeout": 60,
        "precision": "32-true",
        "max_steps": 2000,
        "accumulate_grad_batches": 1,
        "gradient_clip_val": None,
        "val_check_interval": 500,
        "limit_val_batches": 20,
        "log_every_n_steps": 50,
        "enable_progress_bar": True,
        "detect_anomaly": False,
    },
    "logger": {},
    "callbacks": {},
    "evaluate": {"n": 64},
    "debug": {"trace": False},
    "experiment": None,
}


def changed(key, value):
    """WHOLE with another value at a dotted key."""
    config = json.loads(json.dumps(WHOLE))
    *parents, last = key.split(".")
    node = config
    for part in parents:
        node = node[part]
    assert last in node, key
    node[last] = value
    return config


@pytest.mark.parametrize(
    ("config", "data", "told"),
    [
        ({}, {}, "d7384c0f4c381da34ee3bff82d6089b1c3586d76964a2f3a2bb6f6665814fc8d"),
        (SMALL, {}, "8cc532db0782d8244fe77200cb4d3ccdcb700834c5d9a3cfc8960dd07bc2c7a6"),
        (SMALL, DATA, "44bffd93fe6ea8a947beb8b554ed493cc9c308b8c03ec0d4415b869bb829c603"),
        (WHOLE, DATA, "c8aa7343ef49d0ad0618889ec31b85171a87aa732b2b364205807ee73e0807d7"),
        (
            {"text": "é", "list": [1, 2.5, None, True]},
            DATA,
            "546dc97ea81ccb7a96e5ca2737bde1c6a20c61e9c7db47cc3cf16bb650fb131a",
        ),
    ],
    ids=["nothing", "small", "with data", "whole", "every kind of value"],
)
def test_identities_are_those_of_yesterday(config, data, told):
    assert identity(config, data) == told


def test_the_order_of_keys_does_not_matter():
    assert identity(dict(reversed(WHOLE.items())), dict(reversed(DATA.items()))) == identity(WHOLE, DATA)


def test_a_process_with_other_hashes_finds_the_same_identity():
    code = "import sys, json; from zoo.runs import identity; print(identity(*json.loads(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([WHOLE, DATA])],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == identity(WHOLE, DATA)


@pytest.mark.parametrize("key", sorted(EXECUTION))
def test_how_and_where_a_run_goes_is_not_what_it_is(key):
    assert identity(changed(key, "another"), DATA) == identity(WHOLE, DATA)
    assert execution(key)


def test_where_data_lie_is_not_what_a_run_is():
    assert identity(changed("dataset.source.root", "/elsewhere"), DATA) == identity(WHOLE, DATA)
    assert execution("dataset.source.root")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("batch_size", 64),
        ("ema", 0.9),
        ("model.latent", 3),
        ("model._target_", "zoo.models.Autoregressive"),
        ("dataset.shape", [1, 28, 28]),
        ("dataset.source._target_", "zoo.data.CIFAR10"),
        ("optimizer.lr", 0.002),
        ("schedule.warmup", 10),
        ("trainer.precision", "bf16-mixed"),
        ("trainer.max_steps", 2001),
        ("trainer.accumulate_grad_batches", 2),
        ("trainer.gradient_clip_val", 1.0),
    ],
)
def test_what_changes_the_numbers_is_another_run(key, value):
    assert identity(changed(key, value), DATA) != identity(WHOLE, DATA)
    assert not execution(key)


def test_other_data_are_another_run():
    assert identity(WHOLE, {**DATA, "train": "ab"}) != identity(WHOLE, DATA)
    assert identity(WHOLE, {"train": "aa"}) != identity(WHOLE, DATA)


def test_another_run_counts_by_what_it_is_not_by_where_it_lies(tmp_path):
    first = made(tmp_path / "a", "1" * 64)
    started = identity(changed("init", str(first.folder)), DATA)
    moved = first.folder.rename(tmp_path / "b")
    assert identity(changed("init", str(moved)), DATA) == started
    other = made(tmp_path / "c", "2" * 64)
    assert identity(changed("init", str(other.folder)), DATA) != started
    assert started != identity(WHOLE, DATA)
    assert defining({"model": {"codec": {"run": str(moved)}}}) == {"model": {"codec": {"run": "1" * 64}}}


def test_a_run_that_is_not_there_is_refused_with_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none is no run's folder"):
        identity(changed("init", str(tmp_path / "none")), DATA)


def made(folder, whole, **config):
    run = Run(folder)
    run.create(config, whole, {"python": "3"})
    return run


def test_a_run_reads_what_was_written(tmp_path):
    config = {"seed": 0, "lr": 1e-8, "betas": [0.9, 0.999], "name": None, "on": True, "text": "é: ü"}
    made(tmp_path / "one", "1" * 64, **config)
    run = Run.open(tmp_path / "one")
    assert run.config == config
    assert run.identity == "1" * 64
    assert run.results == {}
    assert not run.finished
    run.write_results({"status": "finished", "numbers": []})
    assert run.finished
    assert {path.name for path in run.folder.iterdir()} == {
        "config.yaml",
        "identity.json",
        "environment.json",
        "results.json",
        "checkpoints",
        "samples",
    }


def test_a_folder_of_another_experiment_is_refused_though_its_digits_agree(tmp_path):
    mine, other = "a" * DIGITS + "1" * (64 - DIGITS), "a" * DIGITS + "2" * (64 - DIGITS)
    made(tmp_path / "one", mine, seed=0)
    with pytest.raises(ValueError, match="belongs to another experiment"):
        made(tmp_path / "one", other, seed=1)
    assert Run(tmp_path / "one").config == {"seed": 0}
    assert find(tmp_path, other) is None


def test_a_run_is_found_under_any_name_and_at_any_depth(tmp_path):
    made(tmp_path / "runs" / "vae-1", "1" * 64)
    made(tmp_path / "runs" / "paper" / "table 2" / "renamed", "2" * 64)
    assert find(tmp_path / "runs", "1" * 64).folder == tmp_path / "runs" / "vae-1"
    assert find(tmp_path / "runs", "2" * 64).folder.name == "renamed"
    assert find(tmp_path / "runs", "3" * 64) is None
    assert find(tmp_path / "nowhere", "1" * 64) is None
    assert [run.identity[0] for run in runs(tmp_path)] == ["2", "1"]


def test_what_is_no_run_is_told_with_those_that_are_near(tmp_path):
    made(tmp_path / "vae-1", "1" * 64)
    with pytest.raises(FileNotFoundError, match=r"vae-2 is no run's folder.*runs here: .*vae-1"):
        Run.open(tmp_path / "vae-2")


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, moment):
    path = tmp_path / "results.json"
    folders.write(path, "old")

    def crash(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(folders.os, moment, crash)
    with pytest.raises(KeyboardInterrupt):
        folders.write(path, "new and longer")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_not_written_over(tmp_path):
    path = tmp_path / "results.json"
    folders.write(path, "old")
    reader = path.open()  # whoever reads it meanwhile
    folders.write(path, "new")
    assert reader.read() == "old"
    assert path.read_text() == "new"


def test_values_of_other_libraries_do_not_keep_results_from_being_written(tmp_path):
    folders.write_json(tmp_path / "a.json", {"path": tmp_path, "value": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text())["path"] == str(tmp_path)


def test_a_folder_below_a_file_is_refused_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to .*file/run: Not a directory \(.* MB free\)"):
        made(tmp_path / "file" / "run", "1" * 64)


def test_a_copied_run_is_the_same_run(tmp_path):
    made(tmp_path / "one", "1" * 64)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert Run.open(tmp_path / "two").identity == "1" * 64
