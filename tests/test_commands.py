"""Training, going on, measuring, sampling, sweeping and comparing, as whoever types the commands sees them."""

import csv
import json
import shutil
import signal

import pytest
import torch
import yaml
from commands import TINY, TRANSFORMER, VAE, only, run, train

import zoo
from zoo.jobs.compose import changed, resumed
from zoo.runs import Run
from zoo.training import checkpoint_files as files


def results(folder):
    return json.loads((folder / "results.json").read_text())


def weights(folder, name="best.ckpt"):
    return files.load(folder / "checkpoints" / name)["state_dict"]


def metrics(folder):
    """metrics.csv without what measures time."""
    with open(folder / "metrics.csv") as file:
        return [line for line in csv.reader(file) if "per_second" not in line[1]]


def last(folder):
    """The weights of the last checkpoint."""
    path, _ = files.newest(folder / "checkpoints")
    content = files.load(path)
    return content.get("raw") or content["state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_training_leaves_a_finished_run_with_all_that_belongs_to_it(finished):
    told = results(finished)
    assert told["status"] == "finished"
    assert told["steps"] == 20
    assert told["identity"].startswith(finished.name.rpartition("-")[2])
    assert told["name"] == "vae-digits"
    assert told["parameters"] > 1000
    assert told["seconds"] > 0
    assert set(told["data"]) == {"train", "val", "test"}
    chosen = {"model": "vae", "dataset": "digits", "prior": "normal", "trainer": "cpu"}
    assert told["choices"].items() >= chosen.items()
    assert not any("hydra" in key or "@" in key for key in told["choices"])
    number = told["numbers"][0]
    assert (number["name"], number["split"], number["kind"], number["count"]) == (
        "nats",
        "val",
        "lower bound",
        180,
    )
    assert number["protocol"] == {"method": "log_prob", "samples": 2}
    assert (number["weights"]["which"], number["weights"]["averaged"]) == ("best", False)
    assert number["weights"]["step"] in (10, 20)
    assert told["config"] == yaml.safe_load((finished / "config.yaml").read_text())
    assert {path.name for path in finished.iterdir()} >= {"identity.json", "environment.json", "metrics.csv"}
    assert (finished / "samples" / "final.png").stat().st_size > 0
    assert not list(finished.glob("**/.*")), "nothing half written"


def test_the_same_command_again_trains_nothing_and_says_so(tmp_path):
    first = train(tmp_path)
    folder = only(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (folder / "checkpoints").iterdir()}
    numbers = results(folder)["numbers"]
    again = train(tmp_path, "num_workers=0", "logger=tensorboard", "keep=3")
    assert (first.code, again.code) == (0, 0)
    assert f"{folder} is finished already (rerun=true repeats it)" in again.out
    assert "nats" in again.out
    assert {path: path.stat().st_mtime_ns for path in (folder / "checkpoints").iterdir()} == before
    assert results(folder)["numbers"] == numbers


def test_a_finished_run_of_another_name_is_found_again(copy):
    renamed = copy.rename(copy.with_name("the best one"))
    again = train(copy.parent, "trainer.max_steps=20", "trainer.val_check_interval=10", "optimizer.lr=0.01")
    assert f"{renamed} is finished already" in again.out
    assert only(copy.parent) == renamed


def test_rerun_trains_anew_to_the_same_weights(tmp_path):
    train(tmp_path)
    folder = only(tmp_path)
    before, written = last(folder), (folder / "checkpoints" / "best.ckpt").stat().st_mtime_ns
    lines = metrics(folder)
    assert train(tmp_path, "rerun=true").code == 0
    assert (folder / "checkpoints" / "best.ckpt").stat().st_mtime_ns > written
    assert same(last(folder), before)
    assert metrics(folder) == lines
    assert results(folder)["status"] == "finished"


def test_a_finished_run_is_measured_anew_where_that_is_asked_for(tmp_path):
    train(tmp_path)
    folder = only(tmp_path)
    before = (folder / "checkpoints" / "best.ckpt").stat().st_mtime_ns
    assert train(tmp_path, "evaluate.log_prob.samples=5", "evaluate.splits=[test]").code == 0
    asked = {
        (n["split"], n["protocol"].get("samples")) for n in results(folder)["numbers"] if n["name"] == "nats"
    }
    assert asked == {("val", 2), ("test", 5)}
    assert (folder / "checkpoints" / "best.ckpt").stat().st_mtime_ns == before


def test_evaluation_adds_numbers_and_replaces_equal_ones(copy):
    count = len(results(copy)["numbers"])
    words = (f"run={copy}", "splits=[test]", "log_prob.samples=3", "n=4")
    first = run("evaluate", *words)
    added = results(copy)["numbers"]
    assert first.code == 0, first.err
    (number,) = [n for n in added if n["name"] == "nats" and n["split"] == "test"]
    assert number["protocol"]["samples"] == 3
    assert number["count"] == 360
    assert f"{number['value']:.4f}" in first.out
    assert len(added) > count
    assert (copy / "samples" / "evaluated.png").is_file()
    assert run("evaluate", *words).code == 0
    again = results(copy)["numbers"]
    assert len(again) == len(added)
    assert [n["value"] for n in again] == [n["value"] for n in added]
    assert results(copy)["status"] == "finished"


def test_what_is_measured_again_stands_where_it_stood(copy):
    told = results(copy)
    names, nats = [n["name"] for n in told["numbers"]], told["numbers"][0]["value"]
    told["numbers"][0]["value"] = 0.0
    (copy / "results.json").write_text(json.dumps(told))
    words = ("metrics=[nll]", "splits=[val]", "log_prob.samples=2", "n=0")
    assert run("evaluate", f"run={copy}", *words).code == 0
    assert names[0] == "nats"  # the headline
    assert [n["name"] for n in results(copy)["numbers"]] == names
    assert results(copy)["numbers"][0]["value"] == nats


def test_numbers_of_other_data_do_not_stand_beside_a_runs(copy):
    told = results(copy)
    told["data"]["test"] = "0" * 32
    (copy / "results.json").write_text(json.dumps(told))
    done = run("evaluate", f"run={copy}", "n=0")
    assert done.code == 1
    assert "its test data have changed" in done.err
    assert results(copy) == told
    assert run("evaluate", f"run={copy}", "splits=[val]", "n=0").code == 0


def test_a_run_without_its_folders_is_trained_anew(tmp_path):
    train(tmp_path)
    folder = only(tmp_path)
    for name in ("samples", "checkpoints"):
        shutil.rmtree(folder / name)
    done = train(tmp_path, "rerun=true")
    assert done.code == 0, done.err
    assert (folder / "samples" / "final.png").is_file()


def test_what_is_unwell_is_told_in_words(tmp_path):
    done = train(tmp_path, "model.beta=1000", "trainer.max_steps=20", "optimizer.lr=0.01")
    assert done.code == 0, done.err
    assert "val: active_units=0 of 2: the decoder leaves the latent unused; try" in done.err
    unused = train(tmp_path, "model=vqvae", "encoder.widths=[4,4]", "quantizer.levels=4096", "model.dim=4")
    assert unused.code == 0, unused.err
    assert "most codes never occur; try fewer levels" in unused.err


def test_evaluation_of_the_last_weights_stands_beside_that_of_the_best(copy):
    assert (
        run("evaluate", f"run={copy}", "splits=[val]", "weights=last", "log_prob.samples=2", "n=0").code == 0
    )
    told = {n["weights"]["which"]: n for n in results(copy)["numbers"] if n["name"] == "nats"}
    assert set(told) == {"best", "last"}
    assert told["last"]["weights"]["step"] == 20


def test_the_batch_of_an_evaluation_changes_no_exact_number(tmp_path):
    train(tmp_path, *TRANSFORMER)
    folder = only(tmp_path)
    values = []
    for size in (7, 180):
        assert run("evaluate", f"run={folder}", "splits=[val]", f"batch_size={size}", "n=0").code == 0
        values += [n["value"] for n in results(folder)["numbers"] if n["name"] == "nats"]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_samples_are_written_where_they_are_told_to_be(copy):
    first = run("scripts/sample", f"run={copy}", "n=9", "name=nine")
    assert first.code == 0, first.err
    path = copy / "samples" / "nine.png"
    assert f"samples: {path}" in first.out
    content = path.read_bytes()
    assert run("scripts/sample", f"run={copy}", "n=9", "name=again").code == 0
    assert (copy / "samples" / "again.png").read_bytes() == content
    run("scripts/sample", f"run={copy}", "n=9", "name=other", "seed=1")
    run("scripts/sample", f"run={copy}", "n=9", "name=cold", "sample.temperature=0.1")
    assert (copy / "samples" / "other.png").read_bytes() != content
    assert (copy / "samples" / "cold.png").read_bytes() != content


TEXT = ("dataset=own_text", "dataset.source.length=16", *TRANSFORMER, "batch_size=8")


def test_a_text_is_learned_measured_and_continued(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("the cat sat on the mat. " * 40)
    done = train(tmp_path / "runs", *TEXT, f"dataset.source.root={book}")
    assert done.code == 0, done.err
    folder = only(tmp_path / "runs")
    assert results(folder)["numbers"][0]["name"] == "bits_per_char"
    shown = run("scripts/sample", f"run={folder}", "n=2", "prompt=the cat", "name=said")
    assert shown.code == 0, shown.err
    texts = (folder / "samples" / "said.txt").read_text().split("\n\n----\n\n")
    assert len(texts) == 2
    assert all(text.startswith("the cat") for text in texts)
    assert texts[0] in shown.out


def test_a_class_can_be_asked_for(tmp_path):
    train(tmp_path, *TRANSFORMER, "model.conditional=true", "evaluate.n=0")
    folder = only(tmp_path)
    assert run("scripts/sample", f"run={folder}", "n=2", "y=3", "name=three").code == 0
    assert (folder / "samples" / "three.png").is_file()


def test_load_gives_the_model_that_was_measured(finished):
    model = zoo.load(finished)
    assert not model.training
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    assert same(state, weights(finished))
    assert model.sample(2).shape == (2, 1, 8, 8)
    assert same(
        {f"model.{name}": value for name, value in zoo.load(finished, weights="last").state_dict().items()},
        last(finished),
    )


def test_a_start_from_another_run_has_its_weights_and_is_a_run_of_its_own(finished, tmp_path):
    words = ("trainer.max_steps=1", "optimizer.lr=1e-12", f"init={finished}", "evaluate.n=0")
    assert train(tmp_path, *words).code == 0
    folder = only(tmp_path)
    begun, given = last(folder), weights(finished)
    assert all(torch.allclose(begun[name], given[name], atol=1e-9) for name in given)
    moved = shutil.copytree(finished, tmp_path / "moved" / "away")
    assert "is finished already" in train(tmp_path, *words[:2], f"init={moved}", "evaluate.n=0").out
    assert train(tmp_path, *words[:2], "evaluate.n=0").code == 0
    assert len(list(tmp_path.glob("vae-*"))) == 2


def test_a_start_from_another_model_is_refused_with_the_part_that_differs(finished, tmp_path):
    done = train(tmp_path, "model.latent=3", f"init={finished}")
    assert done.code == 1
    assert "does not fit VAE: encoder" in done.err


def halves(tmp_path, monkeypatch, *words):
    """The same training unbroken, and broken after its first validation and resumed: their folders."""
    from zoo.training.learner import Learner

    assert train(tmp_path / "whole", *words).code == 0
    end = Learner.on_validation_end
    broken = []

    def stop(self):
        end(self)
        if not broken and self.trainer.global_step == 2:
            broken.append(True)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Learner, "on_validation_end", stop)
    done = train(tmp_path / "broken", *words)
    assert (done.code, len(broken)) == (143, 1)
    monkeypatch.undo()
    folder = only(tmp_path / "broken")
    assert results(folder)["status"] == "stopped"
    return only(tmp_path / "whole"), folder


def test_a_stopped_run_that_was_moved_goes_on_as_if_unbroken(tmp_path, monkeypatch):
    whole, broken = halves(tmp_path, monkeypatch, "ema=0.9")
    moved = tmp_path / "elsewhere" / "mine"
    moved.parent.mkdir()
    broken.rename(moved)
    done = run("train", f"resume={moved}", "num_workers=0", "keep=1")
    assert done.code == 0, done.err
    assert "goes on from step-0000000" in done.out
    assert same(last(moved), last(whole))
    assert metrics(moved) == metrics(whole)
    assert results(moved)["numbers"][0]["value"] == results(whole)["numbers"][0]["value"]
    assert run("evaluate", f"run={moved}", "splits=[test]", "log_prob.samples=2", "n=0").code == 0


def test_the_same_command_goes_on_with_a_stopped_run(tmp_path, monkeypatch):
    whole, broken = halves(tmp_path, monkeypatch)
    done = train(tmp_path / "broken")
    assert done.code == 0
    assert "goes on from" in done.out
    assert same(last(broken), last(whole))


def test_numbers_of_an_average_say_so(tmp_path):
    assert train(tmp_path, "ema=0.9", "optimizer.lr=0.1").code == 0
    folder = only(tmp_path)
    assert all(number["weights"]["averaged"] for number in results(folder)["numbers"])
    model = {f"model.{name}": value for name, value in zoo.load(folder, weights="last").state_dict().items()}
    assert not same(model, last(folder)), "the raw weights were taken for the average"


def test_gradient_checkpointing_changes_no_number(tmp_path):
    lines = []
    for policy in ("none", "full"):
        folder = tmp_path / policy
        assert train(folder, *TRANSFORMER, "mixer.dropout=0.1", f"gradient_checkpointing={policy}").code == 0
        lines.append(metrics(only(folder)))
    assert lines[0] == lines[1]


def test_two_micro_batches_are_one_batch(tmp_path):
    values = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        words = (*TRANSFORMER, f"trainer.accumulate_grad_batches={count}", "trainer.limit_val_batches=null")
        assert train(folder, *words).code == 0
        values.append([float(line[2]) for line in metrics(only(folder))[1:]])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_a_sweep_makes_a_run_of_each_and_again_none(tmp_path):
    words = (
        "-m",
        *TINY,
        f"runs={tmp_path}",
        "model=vae,transformer",
        "trainer.val_check_interval=9",
        "seed=0,1",
        "trainer.max_steps=2",
        "evaluate.n=0",
    )
    small = ("evaluate.splits=[]", "batch_size=8", "trainer.limit_val_batches=1")
    done = run("train", *words, *small)
    assert done.code == 0, done.err
    folders = list(tmp_path.glob("*/identity.json"))
    assert len(folders) == 4
    found = [results(path.parent) for path in folders]
    assert sorted(told["choices"]["model"] for told in found) == ["transformer"] * 2 + ["vae"] * 2
    made = {(told["name"], told["config"]["seed"]) for told in found}
    assert made == {
        ("vae-digits", 0),
        ("vae-digits", 1),
        ("transformer-digits", 0),
        ("transformer-digits", 1),
    }
    again = run("train", *words, *small)
    assert again.code == 0
    assert again.out.count("is finished already") == 4


def test_a_failing_job_stops_no_other_and_the_status_tells(tmp_path):
    done = run(
        "train", "-m", *TINY, *VAE, f"runs={tmp_path}", "optimizer.lr=1e30,0.001", "trainer.max_steps=3"
    )
    assert done.code == 1
    assert done.err.count("error: ") == 1
    assert "Traceback" not in done.err
    statuses = sorted(results(path.parent)["status"] for path in tmp_path.glob("*/identity.json"))
    assert statuses == ["failed", "finished"]


def test_a_failed_job_that_cannot_be_composed_fails_the_sweep(tmp_path):
    done = run("train", "-m", *TINY, *VAE, f"runs={tmp_path}", "seed=0,x")
    assert done.code == 1
    assert "seed=x" in done.err


def test_runs_are_compared_in_one_table(finished, tmp_path):
    assert train(tmp_path, *TRANSFORMER).code == 0
    done = run("scripts/compare", tmp_path, finished)
    assert done.code == 0, done.err
    value = next(n["value"] for n in results(only(tmp_path))["numbers"])
    assert "transformer-digits" in done.out
    assert "vae-digits" in done.out
    assert f"{value:.2f}"[:4] in done.out


def test_a_run_of_one_name_is_called_so(tmp_path):
    train(tmp_path, "name=mine", "evaluate.n=0")
    assert only(tmp_path).name.startswith("mine-")
    assert "is finished already" in train(tmp_path, "name=other", "evaluate.n=0").out


def test_a_logger_gets_the_numbers_of_training_and_evaluation(copy):
    done = run("evaluate", f"run={copy}", "logger=tensorboard", "splits=[test]", "log_prob.samples=2", "n=4")
    assert done.code == 0, done.err
    assert list(copy.glob("**/events.out.tfevents*"))


def test_an_early_stop_is_told_by_the_steps_and_is_another_experiment(tmp_path):
    words = (
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=1e9",
    )
    assert train(tmp_path, *words, "trainer.max_steps=20").code == 0
    folder = only(tmp_path)
    found = results(folder)
    assert (found["status"], found["steps"]) == (
        "finished",
        4,
    )  # the second validation, as nothing falls by so much
    again = train(tmp_path, *words, "trainer.max_steps=20")
    assert "is finished already" in again.out
    assert train(tmp_path, "trainer.max_steps=20").code == 0
    assert len(list(tmp_path.glob("*/identity.json"))) == 2


def test_a_papers_number_does_not_stand_beside_a_changed_recipe(tmp_path):
    words = ("experiment=rectified_flow/moons", "model=rectified_flow", "evaluate.samples=50")
    assert (
        changed(["experiment=a", "seed=3", "runs=x", "trainer=ddp", "trainer.devices=2", "evaluate.n=1"])
        == []
    )
    assert changed(["experiment=a", "batch_size=3", "+evaluate.log_prob.samples=2", "model=vae"]) == [
        "batch_size",
        "evaluate.log_prob.samples",
        "model",
    ]
    done = train(tmp_path, *words)
    assert done.code == 0, done.err
    said = results(only(tmp_path))["config"]["experiment"]
    assert "batch_size" in said["changed"]
    assert "evaluate.reference" not in said["changed"]
    asked = Run(only(tmp_path)).config
    asked["resume"], asked["evaluate"]["reference"] = only(tmp_path), "val"
    stored, _ = resumed(asked, ["evaluate.reference=val"])
    assert {"batch_size", "evaluate.reference"} <= set(stored["experiment"]["changed"])
