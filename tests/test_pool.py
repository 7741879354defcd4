"""The launchers: the same outcome of the same jobs, whoever starts them; a bound on how many run at once."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import TINY, VAE, process, run, train
from conftest import ROOT
from tiny_run import ended, forked

from hydra_plugins import zoo_pool
from zoo.runs import runs
from zoo.runs.sweep import records

FAST = ("trainer.max_steps=2", "evaluate.n=0", "evaluate.splits=[]", "batch_size=8")
POOL = ("hydra/launcher=pool", "hydra.launcher.n=2")


def told(folder):
    """All that the jobs of a folder's sweeps recorded."""
    return [record for place in sorted((folder / ".sweep").iterdir()) for record in records(place)]


def outcomes(folder):
    return sorted(record["outcome"] for record in told(folder))


def identities(folder):
    return {found.identity for found in runs(folder) if found.finished}


def test_a_pool_does_what_one_process_does(tmp_path):
    words = ("-m", *FAST, "evaluate.splits=[val]", "seed=0,1,2")
    pooled = train(tmp_path / "pool", *words, *POOL)
    assert pooled.code == 0, pooled.out + pooled.err
    assert "3 jobs" in pooled.out
    assert train(tmp_path / "here", *words).code == 0
    numbers = [
        {found.folder.name: [n["value"] for n in found.results["numbers"]] for found in runs(tmp_path / name)}
        for name in ("pool", "here")
    ]
    assert numbers[0] == numbers[1]
    assert outcomes(tmp_path / "pool") == ["done"] * 3
    again = train(tmp_path / "pool", *words, *POOL)
    assert "3 finished before" in again.out
    log = Path(told(tmp_path / "pool")[0]["log"]).read_text()
    assert "samples and results" in log


def test_a_job_of_a_pool_fails_alone(tmp_path):
    done = train(tmp_path, "-m", *FAST, "trainer.max_steps=3", "optimizer.lr=0.001,1e30", *POOL)
    assert done.code == 1
    assert outcomes(tmp_path) == ["done", "failed"]
    (line,) = [line for line in done.out.splitlines() if line.startswith("failed")]
    assert "is not finite" in line
    assert "Traceback" in Path(line.rpartition("see ")[2]).read_text()


def test_a_job_that_the_system_kills_is_a_failed_one_and_goes_on_when_it_is_asked_for_again(
    tmp_path, monkeypatch
):
    from zoo.jobs import train as jobs

    fit = jobs.fit

    def killed(config, *args):
        if config["seed"] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return fit(config, *args)

    monkeypatch.setattr(jobs, "fit", killed)
    done = train(tmp_path, "-m", *FAST, "seed=0,1", *POOL)
    assert done.code == 1
    assert outcomes(tmp_path) == ["done", "failed"]
    assert "killed by SIGKILL, as when memory runs out" in done.out
    monkeypatch.undo()
    assert train(tmp_path, "-m", *FAST, "seed=0,1", *POOL).code == 0


def test_no_more_jobs_run_at_once_than_were_asked_for(tmp_path, monkeypatch):
    from zoo.jobs import train as jobs

    fit, here = jobs.fit, tmp_path / "here"
    here.mkdir()

    def counted(config, *args):
        mine = here / str(os.getpid())
        mine.touch()
        end = time.monotonic() + 10
        while len(list(here.iterdir())) < 2 and config["seed"] < 4 and time.monotonic() < end:
            time.sleep(0.02)  # for another, but for the last
        (tmp_path / f"seen-{config['seed']}").write_text(str(len(list(here.iterdir()))))
        try:
            return fit(config, *args)
        finally:
            mine.unlink()

    monkeypatch.setattr(jobs, "fit", counted)
    assert train(tmp_path / "runs", "-m", *FAST, "seed=range(5)", *POOL).code == 0
    seen = [int(path.read_text()) for path in tmp_path.glob("seen-*")]
    assert len(seen) == 5
    assert max(seen) == 2


def alive(pid):
    """Whether a process runs still; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_pool_ends_its_jobs_and_the_same_command_goes_on(tmp_path, number):
    words = ("-m", *FAST, "seed=0,1", "trainer.max_steps=60", "checkpoint_every=5", *POOL)

    def work():
        raise SystemExit(train(tmp_path, *words).code)

    child = forked(work)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("*/checkpoints/step-*"))) < 2:
        assert time.monotonic() < until
        time.sleep(0.02)
    pids = [record["process"] for record in told(tmp_path) if "process" in record]
    os.kill(child, number)
    if number == signal.SIGKILL:
        assert ended(child) == -9
    else:
        assert ended(child) == 128 + number
        assert "stopped" in outcomes(tmp_path)
    while any(map(alive, pids)):
        assert time.monotonic() < until
        time.sleep(0.02)
    again = train(tmp_path, *words)
    assert again.code == 0, again.out + again.err
    assert len(identities(tmp_path)) == 2
    assert any(
        "goes on from" in Path(r["log"]).read_text() for r in told(tmp_path) if Path(r["log"]).exists()
    )


@pytest.mark.slow
def test_fresh_processes_get_a_device_each(tmp_path):
    """The path that machines with GPUs take, but on the CPU: what is handed out is read from the runs' logs."""
    (tmp_path / "mine").mkdir()
    script = (
        "import os; print('device', os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ['OMP_NUM_THREADS'])\n"
    )
    (tmp_path / "mine" / "sitecustomize.py").write_text(script)
    line = [
        sys.executable,
        str(ROOT / "train.py"),
        "-m",
        *TINY,
        *VAE,
        *FAST,
        "seed=0,1,2",
        f"runs={tmp_path / 'runs'}",
    ]
    own = {"CUDA_VISIBLE_DEVICES": "4,7", "PYTHONPATH": str(tmp_path / "mine")}
    own = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | own
    done = subprocess.run(
        [*line, "trainer.accelerator=auto", "hydra/launcher=pool"],
        env=own,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    logs = [Path(record["log"]).read_text() for record in told(tmp_path / "runs")]
    assert len(logs) == 3
    devices = {log.split()[1] for log in logs}
    assert devices == {"4", "7"}
    assert outcomes(tmp_path / "runs") == ["done"] * 3


def test_the_devices_are_those_that_may_be_seen(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert zoo_pool.devices() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert zoo_pool.devices() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "")
    assert zoo_pool.devices() == []


def test_a_pool_of_less_than_nothing_is_refused(tmp_path):
    done = train(tmp_path, "-m", *FAST, "seed=0,1", "hydra/launcher=pool", "hydra.launcher.n=-1")
    assert done.code == 1
    assert "hydra.launcher.n=-1" in done.err


def test_joblib_is_answered_with_what_to_use_instead(tmp_path):
    done = train(tmp_path, "-m", *FAST, "seed=0,1", "hydra/launcher=joblib")
    assert done.code == 1
    assert "hydra/launcher=pool" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["here", "pool", "slurm", "ray"])
def test_forty_jobs(tmp_path, launcher):
    if launcher == "slurm" and not slurm():
        pytest.skip("no Slurm answers here, or submitit's plugin is not installed (pip install zoo[slurm])")
    if launcher == "ray" and importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is None:
        pytest.skip("Hydra's plugin for Ray is not installed (pip install zoo[ray])")
    words = [*TINY, *VAE, *FAST, f"runs={tmp_path}", "seed=range(40)", f"hydra/launcher={launcher}"]
    done = process("train", "-m", *words, seconds=1500)
    assert done.code == 0, done.out + done.err
    assert "40 jobs" in done.out
    assert len(identities(tmp_path)) == 40
    again = process("train", "-m", *words)
    assert "40 finished before" in again.out


# the signal, what Slurm tells of the job, and the status of the end
SCHEDULED = {
    "its time is nearly over": (signal.SIGUSR2, None, -1),
    "preempted": (signal.SIGTERM, "PreemptTime=2026-01-02T03:04:05", -1),
    "cancelled": (signal.SIGTERM, "PreemptEligibleTime=2026-01-02T03:04:05 PreemptTime=None", 143),
    "without Slurm": (signal.SIGTERM, None, 143),
}


@pytest.mark.parametrize("case", SCHEDULED)
def test_a_scheduler_queues_a_job_again_when_all_is_saved(tmp_path, monkeypatch, case):
    """As submitit's does: its handler of SIGUSR2 queues the job again and leaves."""
    from zoo.training.learner import Learner

    number, says, code = SCHEDULED[case]
    if says:
        command = tmp_path / "bin" / "scontrol"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\n[ "$*" = "show job 7" ] && echo "{says}"\n')
        command.chmod(0o755)
        monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    step, saved = Learner.training_step, []

    def told(self, *args):
        if self.trainer.global_step == 4:
            signal.raise_signal(number)
        return step(self, *args)

    def queued(number, frame):
        saved.extend(path.name for path in tmp_path.glob("*/checkpoints/step-*"))
        raise SystemExit(-1)

    words = ("trainer.max_steps=8", "trainer.val_check_interval=8", "checkpoint_every=100", "evaluate.n=0")
    before = signal.signal(signal.SIGUSR2, queued)
    try:
        with monkeypatch.context() as now:
            now.setattr(Learner, "training_step", told)
            assert train(tmp_path, *words).code == code
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert saved == (["step-00000005.ckpt"] if code == -1 else [])
    assert "goes on from step-00000005" in train(tmp_path, *words).out


def test_a_search_survives_failed_trials_and_goes_on_with_its_study(tmp_path):
    if importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        done = train(tmp_path, "-m", *FAST, "hydra/sweeper=search", "seed=interval(0,9)")
        assert done.code == 1
        assert "pip install 'zoo[search]'" in done.err
        pytest.skip("Hydra's plugin for Optuna is not installed (pip install zoo[search])")
    words = (
        "-m",
        *FAST,
        "hydra/sweeper=search",
        "hydra.sweeper.n_trials=2",
        "optimizer.lr=choice(0.01,1e30)",
    )
    for trials in (2, 4):
        done = train(tmp_path, *words, "trainer.max_steps=4")
        assert (tmp_path / "search.db").exists(), done.out + done.err
        assert len(told(tmp_path)) == trials


def test_the_sweep_for_wandb_starts_commands_that_are_understood(tmp_path):
    import yaml

    asked = yaml.safe_load((ROOT / "docs" / "wandb_sweep.yaml").read_text())
    assert (ROOT / asked["program"]).is_file()
    values = {"optimizer.lr": 0.001, "model.latent": 8, "seed": 2}
    assert set(asked["parameters"]) == set(values)
    words = [word for word in asked["command"] if not word.startswith("${")]
    assert asked["command"][-1] == "${args_no_hyphens}"
    done = run(
        "train",
        *words,
        *(f"{key}={value}" for key, value in values.items()),
        f"runs={tmp_path}",
        "dry_run=true",
    )
    assert done.code == 0, done.err
    assert "vae-digits" in done.out


def slurm():
    """Whether jobs can be given to a Slurm."""
    if importlib.util.find_spec("submitit") is None or shutil.which("sbatch") is None:
        return False
    return subprocess.run(["sinfo", "-h"], capture_output=True).returncode == 0
