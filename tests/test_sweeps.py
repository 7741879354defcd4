"""A sweep is a set of identities: what is finished is told, what failed stops no other, what was killed goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import TINY, TRANSFORMER, VAE, run, train
from conftest import ROOT
from tiny_run import ended, forked

from zoo.jobs import known
from zoo.runs import Run, lock, runs
from zoo.runs.sweep import Record, objective, records, summary, varying

FAST = ("trainer.max_steps=2", "evaluate.n=0", "evaluate.splits=[]", "batch_size=8")


def sweep(folder, *words):
    """A sweep of tiny trainings in this process."""
    return train(folder, "-m", *FAST, *words)


def places(folder):
    return sorted((folder / ".sweep").iterdir())


def outcomes(folder):
    """What the last sweep of a folder recorded, by number."""
    return [
        record["outcome"] for record in records(max(places(folder), key=lambda path: path.stat().st_ctime))
    ]


def results(folder):
    """What the runs of a folder found, without what measures time."""
    told = {}
    for found in runs(folder):
        plain = found.results
        assert plain["status"] == "finished", plain
        told[found.folder.name] = [(n["name"], n["split"], n["value"]) for n in plain["numbers"]]
    return told


def background(folder, *words):
    """The same sweep in a child of this warm process, its pid; what it says goes to <folder>.said."""

    def work():
        with open(f"{folder}.said", "a") as said:
            done = sweep(folder, *words)
            said.write(done.out + done.err)
        raise SystemExit(done.code)

    return forked(work)


def test_a_finished_sweep_is_confirmed_from_its_runs(tmp_path):
    first = sweep(tmp_path, "seed=0,1")
    assert first.code == 0, first.err
    assert "2 jobs" in first.out
    assert "2 done" in first.out
    again = sweep(tmp_path, "seed=0,1,2")
    assert again.code == 0, again.err
    assert again.out.count("is finished already") == 2
    assert "1 done, 2 finished before" in again.out
    assert outcomes(tmp_path) == ["done", "skipped", "skipped"]


def test_a_finished_sweep_needs_neither_torch_nor_data(tmp_path):
    assert sweep(tmp_path, "seed=0,1").code == 0
    code = (
        "import sys, runpy; sys.argv[0] = 'train.py'\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    line = [sys.executable, "-c", code, "-m", *TINY, *VAE, *FAST, f"runs={tmp_path}", "seed=0,1"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "2 finished before" in done.stdout
    assert done.stdout.endswith("False\n")


def test_what_is_measured_anew_is_no_finished_job(tmp_path):
    assert sweep(tmp_path, "seed=0").code == 0
    assert "1 done" in sweep(tmp_path, "seed=0", "evaluate.splits=[val]").out


def test_a_failed_job_is_told_with_its_reason_and_its_log_and_run_again(tmp_path):
    words = ("optimizer.lr=0.001,1e30,0.002", "trainer.max_steps=3")
    done = sweep(tmp_path, *words)
    assert done.code == 1
    assert "3 jobs" in done.out
    assert "2 done, 1 failed" in done.out
    (line,) = [line for line in done.out.splitlines() if line.startswith("failed ")]
    assert "optimizer.lr=1e+30: the loss term" in line
    log = line.rpartition("see ")[2]
    assert "FloatingPointError" in (ROOT / log).read_text()
    again = sweep(tmp_path, *words)
    assert (again.code, sorted(outcomes(tmp_path))) == (1, ["failed", "skipped", "skipped"])


@pytest.mark.parametrize(
    "fault", [MemoryError("no more"), RuntimeError("CUDA out of memory"), SystemError("?")]
)
def test_a_job_that_breaks_down_stops_no_other(tmp_path, monkeypatch, fault):
    from zoo.jobs import train as jobs

    fit, calls = jobs.fit, []

    def broken(*args):
        calls.append(args)
        if len(calls) == 1:
            raise fault
        return fit(*args)

    monkeypatch.setattr(jobs, "fit", broken)
    done = sweep(tmp_path, "seed=0,1")
    assert done.code == 1
    assert outcomes(tmp_path) == ["failed", "done"]
    assert f"{type(fault).__name__}: {fault}" in done.out
    monkeypatch.undo()
    assert sweep(tmp_path, "seed=0,1").code == 0


def test_an_invalid_combination_is_a_failed_job_with_its_sentence(tmp_path):
    done = train(tmp_path, "-m", *FAST, *TRANSFORMER[1:], "model=transformer", "mixer.heads=2,3")
    assert done.code == 1
    assert sorted(outcomes(tmp_path)) == ["done", "failed"]
    assert "dim=8 cannot be split over heads=3" in done.out
    done = train(tmp_path / "b", "-m", *FAST, "model=vae,transformer", "++model.latent=2")
    assert done.code == 1
    assert "model=transformer" in done.out
    assert sorted(outcomes(tmp_path / "b")) == ["done", "failed"]


def test_a_fault_of_all_jobs_is_told_once_before_any(tmp_path):
    done = sweep(tmp_path, "seed=0,1", "model.latnet=3")
    assert done.code == 1
    assert done.err.strip() == "error: model.latnet: there is no such key, did you mean model.latent?"
    assert not tmp_path.joinpath(".sweep").exists()


def test_a_signal_ends_the_sweep_and_the_same_command_goes_on(tmp_path, monkeypatch):
    from zoo.training.learner import Learner

    end = Learner.on_validation_end

    def stop(self):
        end(self)
        if self.trainer.global_step == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Learner, "on_validation_end", stop)
    words = ("seed=0,1", "trainer.max_steps=4")
    done = sweep(tmp_path, *words)
    assert done.code == 143
    assert outcomes(tmp_path) == ["stopped", "running"]
    assert "1 stopped, 1 ended without a word" in done.out
    assert "it did not begin" in done.out
    monkeypatch.undo()
    again = sweep(tmp_path, *words)
    assert again.code == 0
    assert "goes on from" in again.out


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["here", "pool"])
def test_a_sweep_killed_at_any_moment_ends_as_an_undisturbed_one(tmp_path, launcher):
    words = ("seed=range(6)", "evaluate.splits=[val]", f"hydra/launcher={launcher}", "trainer.max_steps=40")
    assert sweep(tmp_path / "whole", *words).code == 0
    ends = []
    for moment in (1.5, 0.3, 2.5, 0.8, 2.0, 1.0):
        child = background(tmp_path / "broken", *words)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert ends.count(-signal.SIGKILL) >= 3, "it was over before it was killed"
    done = sweep(tmp_path / "broken", *words)
    assert done.code == 0, done.out + done.err
    assert results(tmp_path / "broken") == results(tmp_path / "whole")


def test_a_killed_sweep_holds_no_lock_and_its_jobs_are_told_for_what_they_were(tmp_path):
    words = ("seed=0,1", "trainer.max_steps=100000", "checkpoint_every=5")
    child = background(tmp_path / "runs", *words)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("runs/*/checkpoints/step-*")):
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (place,) = places(tmp_path / "runs")
    assert [record["outcome"] for record in records(place)] == ["running", "running"]
    assert all(lock.free(path) for path in (tmp_path / "runs" / ".locks").iterdir())
    assert "killed" in summary(records(place), 1.0)
    assert " unfinished " in sweep(tmp_path / "runs", *words, "dry_run=true").out


def test_two_sweeps_at_once_train_each_run_once(tmp_path):
    folder = tmp_path / "runs"
    children = [background(folder, "seed=range(3)", "trainer.max_steps=30") for _ in range(2)]
    codes = [ended(child, 120) for child in children]
    said = Path(f"{folder}.said").read_text()
    assert codes == [0, 0], said
    told = [record for place in places(folder) for record in records(place)]
    assert sorted(record["outcome"] for record in told) == ["done"] * 3 + ["skipped"] * 3, said
    assert len({record["run"] for record in told if record["outcome"] == "done"}) == 3
    assert len(results(folder)) == 3


def test_a_single_training_waits_for_another_of_the_same(tmp_path):
    with lock.held(tmp_path, "a" * 64):
        code = "import sys; from pathlib import Path; from zoo.runs import lock\n"
        code += "with lock.held(Path(sys.argv[1]), 'a' * 64, wait=sys.argv[2] == 'wait'): print('mine')"
        line = [sys.executable, "-c", code, str(tmp_path)]
        refused = subprocess.run([*line, "no"], cwd=ROOT, capture_output=True, text=True)
        assert f"another process trains it now (process {os.getpid()} on" in refused.stderr
        waiting = subprocess.Popen([*line, "wait"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert waiting.stdout.readline().endswith("waiting for its end\n")
        assert waiting.poll() is None
    assert waiting.communicate(timeout=20)[0] == "mine\n"


def test_other_ranks_of_a_training_take_no_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with lock.held(tmp_path, "a" * 64):
        assert not (tmp_path / ".locks").exists()


def test_a_run_deleted_half_way_fails_alone_and_is_made_anew(tmp_path, monkeypatch):
    from zoo.jobs import train as jobs

    fit = jobs.fit

    def deleting(config, model, data, made, *args):
        told = fit(config, model, data, made, *args)
        if config["seed"] == 0:
            shutil.rmtree(made.folder)
        return told

    monkeypatch.setattr(jobs, "fit", deleting)
    done = sweep(tmp_path, "seed=0,1")
    assert done.code == 1
    assert outcomes(tmp_path) == ["failed", "done"]
    assert "No such file or directory" in done.out
    monkeypatch.undo()
    again = sweep(tmp_path, "seed=0,1")
    assert again.code == 0, again.err
    assert len(results(tmp_path)) == 2


def test_data_that_changed_are_not_taken_for_known(tmp_path):
    book = tmp_path / "book.txt"
    words = ("dataset=own_text", "dataset.source.length=16", f"dataset.source.root={book}", *TRANSFORMER)
    for text, told in (
        ("the cat sat. " * 60, "1 done"),
        ("the cat sat. " * 60, ""),
        ("a dog ran by. " * 60, "1 done"),
    ):
        if told:
            book.write_text(text)
        done = train(tmp_path / "runs", "-m", *FAST, *words, "seed=0")
        assert done.code == 0, done.err
        assert (told or "1 finished before") in done.out


def test_data_of_a_strangers_code_are_never_remembered():
    config = {"dataset": {"name": "mine", "source": {"_target_": "mine.Data", "root": "x"}}}
    assert known.memory(config) is None
    assert known.memory({"dataset": {"source": {"_target_": "zoo.data.Digits"}}}) is not None
    text = {"_target_": "zoo.data.Text", "corpus": {"_target_": "mine.corpus", "_partial_": True}}
    assert known.memory({"dataset": {"source": text}}) is None


def test_measuring_many_ways_at_once_tells_which_failed(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = (f"run={copy}", "splits=[val]", "log_prob.samples=2", "n=0")
    assert run("evaluate", "-m", *words, "weights=best,last").code == 0
    done = run("evaluate", "-m", *words, "weights=best,first")
    assert done.code == 1
    assert "1 done, 1 failed" in done.out
    assert "weights=first" in done.out


def test_a_search_gets_the_metric_at_the_best_step(tmp_path):
    found = Run(tmp_path)
    lines = [
        "step,name,value",
        "1,val/loss,3",
        "1,val/nats,9",
        "2,val/loss,2",
        "2,val/nats,8",
        "3,val/loss,4",
    ]
    found.metrics_path.write_text("\n".join([*lines, "3,val/nats,1"]) + "\n")
    assert objective(found, "val/loss") == 2
    assert objective(found, "val/nats") == 8
    assert objective(found, "val/none") is None


def test_a_record_is_whole_at_any_moment_and_says_how_long_it_took(tmp_path):
    record = Record(tmp_path / "place", 3)
    assert record.read() == {}
    record.write(run="runs/x")
    record.begin(["seed=1"])
    assert (record.read()["outcome"], record.read()["run"]) == ("running", "runs/x")
    record.end("done")
    told = json.loads(record.path.read_text())
    assert (told["job"], told["outcome"], told["overrides"]) == (3, "done", ["seed=1"])
    assert 0 <= told["seconds"] < 5


def test_jobs_are_named_by_what_differs():
    assert varying([["a=1", "b=2"], ["a=1", "b=3"]]) == ["b=2", "b=3"]
    assert varying([["a=1"]]) == ["a=1"]


def test_a_grid_can_be_seen_before_anything_is_done(tmp_path):
    done = sweep(tmp_path, "model.latent=2,3", "mixer=linear,softmax", "dry_run=true")
    assert done.code == 1  # the VAE has no mixer
    assert sweep(tmp_path, "seed=0").code == 0
    done = sweep(tmp_path, "model.latent=2,3,abc", "dry_run=true")
    assert done.code == 1
    lines = done.out.splitlines()
    assert lines[1].split()[2:4] == ["finished", "17,860"]
    assert lines[2].split()[2:4] == ["new", "17,886"]
    assert lines[3].split()[:2] == ["2", "invalid"]
    assert "model.latent='abc'" in lines[4]
    assert "1 new, 0 to go on with, 1 finished, 1 invalid" in done.out
    assert len(list(tmp_path.glob("*/identity.json"))) == 1
    assert len(places(tmp_path)) == 1
    alone = run("train", *TINY, *VAE, *FAST, f"runs={tmp_path}", "dry_run=true", "seed=5")
    assert alone.code == 0
    assert "new" in alone.out


def test_only_a_dataset_s_own_folder_is_its_data(tmp_path, monkeypatch):
    """An empty text is the working folder's path too: all files there were looked at, and a dead link ended it."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "gone").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    source = {"_target_": "zoo.data.Text", "root": "data", "corpus": {"pattern": "", "name": "notes"}}
    config = {"dataset": {"source": source}}

    def memory():
        known.seen.cache_clear()
        return known.memory(config)

    before = memory()
    (tmp_path / "notes").write_text("of no concern")
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    assert memory() == before
    (data / "text").write_text("of the data")
    assert memory() != before
