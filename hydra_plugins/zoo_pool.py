"""The jobs of a sweep on this machine: in this process one by one, or so many at once in processes of their own.

Hydra finds it by where it lies. Nothing here imports torch at its top, for Hydra reads it whenever it starts.
"""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

SIGNALS = (signal.SIGINT, signal.SIGTERM)
DEATH = 1  # prctl's PR_SET_PDEATHSIG: a signal for when the parent is gone


class Pool(Launcher):
    """At most n jobs at once, each with GPUs, or a share of the cores, of its own, and with a log of its own.

    n         null: as many as GPUs allow for, else as there are cores; 0: all in this process, one by one
    devices   GPUs for each job
    fresh     jobs import everything anew; False: they are forked from this process, which has; None: they are
              forked where there is no GPU, for CUDA does not survive a fork
    Ctrl-C, or SIGTERM, is handed to all jobs, which save and stop; a second one kills them. Jobs end with this process.
    """

    def __init__(self, n: int | None, devices: int, fresh: bool | None) -> None:
        if (n is not None and n < 0) or devices < 1:
            raise ValueError(f"hydra.launcher.n={n}, devices={devices}: n is 0 or more, devices 1 or more")
        self.n, self.devices, self.fresh = n, devices, fresh

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands over."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Do all jobs; their numbers begin with initial_job_idx. SystemExit where a signal stopped them."""
        from zoo.runs.sweep import varying

        setup_globals()
        jobs = [(initial_job_idx + i, list(words)) for i, words in enumerate(job_overrides)]
        names = {number: words for (number, _), words in zip(jobs, varying(job_overrides))}
        if self.n == 0:
            return [self.here(number, words, f"#{number} {names[number]}") for number, words in jobs]
        gpus = [] if OmegaConf.select(self.config, "trainer.accelerator") == "cpu" else devices()
        if 0 < len(gpus) < self.devices:
            raise ValueError(f"hydra.launcher.devices={self.devices}: there are {len(gpus)} GPUs")
        slots = [
            gpus[i : i + self.devices] for i in range(0, len(gpus) - self.devices + 1, self.devices)
        ] or [[]]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        n = self.n or (len(slots) if gpus else cores)
        fresh = bool(gpus) if self.fresh is None else self.fresh
        if not fresh:
            import zoo.jobs.train  # noqa: F401  paid once, for all that are forked
        workers = Workers(self, min(n, len(jobs)), slots, max(1, cores // n), fresh)
        workers.run(jobs, names)
        return [returned(words, workers.record(number)) for number, words in jobs]

    def here(self, number: int, words: list[str], title: str) -> JobReturn:
        """One job, in this process."""
        print(title, flush=True)
        return run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=self.composed(number, words),
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    def composed(self, number: int, words: list[str]) -> DictConfig:
        """A job's config."""
        config = self.context.config_loader.load_sweep_config(self.config, words)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config


class Workers:
    """The processes of a pool: `run` starts one as soon as a slot is free, until all jobs have ended."""

    def __init__(self, pool: Pool, n: int, slots: list[list[str]], threads: int, fresh: bool) -> None:
        self.pool, self.n, self.slots, self.threads, self.fresh = pool, n, slots, threads, fresh
        self.place = Path(pool.config.hydra.sweep.dir)
        self.running: dict[int, tuple[BaseProcess, int]] = {}  # by number: the process, and its slot
        self.got = 0

    def record(self, number: int) -> Any:
        """Where a job tells what became of it."""
        from zoo.runs.sweep import Record

        return Record(self.place, number)

    def run(self, jobs: list[tuple[int, list[str]]], names: dict[int, str]) -> None:
        """Do all jobs. SystemExit(128 + signal) where one stopped them."""
        self.place.mkdir(parents=True, exist_ok=True)
        bar = Bar(len(jobs), self.n)
        waiting, free = list(jobs), list(range(self.n))
        before = {number: signal.signal(number, self.stop) for number in SIGNALS}
        try:
            while self.running or (waiting and not self.got):
                while waiting and free and not self.got:
                    number, words = waiting.pop(0)
                    self.running[number] = self.start(number, words, slot := free.pop(0)), slot
                    bar.draw(len(self.running))
                wait([process.sentinel for process, _ in self.running.values()], timeout=0.2)
                for number, (process, slot) in list(self.running.items()):
                    if process.exitcode is not None:
                        process.join()
                        del self.running[number]
                        free.append(slot)
                        bar.ended(
                            number, names[number], self.ended(number, process.exitcode), len(self.running)
                        )
                bar.draw(len(self.running))
        finally:
            self.kill(signal.SIGKILL)
            for number, handler in before.items():
                signal.signal(number, handler)
            bar.close()
        if self.got:
            raise SystemExit(128 + self.got)

    def start(self, number: int, words: list[str], slot: int) -> BaseProcess:
        """Fork a process for a job."""
        sys.stdout.flush()
        sys.stderr.flush()
        process = multiprocessing.get_context("fork").Process(
            target=self.work, args=(number, words, slot, os.getpid())
        )
        process.start()
        return process

    def work(self, number: int, words: list[str], slot: int, parent: int) -> None:
        """What the new process does: the job, here or, when everything is imported anew, as a command of its own."""
        os.setsid()  # the terminal's Ctrl-C is for the pool, which hands it on
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(DEATH, signal.SIGTERM)
            if os.getppid() != parent:  # it was gone before
                os._exit(1)
        for given in SIGNALS:
            signal.signal(given, signal.SIG_DFL)
        log = os.open(self.record(number).log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(log, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        environment = self.environment(slot)
        if self.fresh:
            line = self.line(number, words)
            os.execve(line[0], line, environment | {"ZOO_JOB": f"{self.place}:{number}"})
        os.environ.update(environment)
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
        self.pool.here(number, words, " ".join(words))

    def environment(self, slot: int) -> dict[str, str]:
        """The process's variables: its GPUs, and its share of the threads where the user named none."""
        own = {"OMP_NUM_THREADS": str(self.threads), **os.environ}
        if gpus := self.slots[slot % len(self.slots)]:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return own

    def line(self, number: int, words: list[str]) -> list[str]:
        """The job as a command line."""
        from zoo.config.catalogue import folders

        own = [f"--config-dir={folder.resolve()}" for folder in folders()[1:]]
        hydra = self.pool.config.hydra.overrides.hydra
        kept = [word for word in hydra if word.lstrip("+").startswith(("hydra.searchpath", "hydra.job."))]
        script = str(Path(sys.argv[0]).resolve())
        return [sys.executable, script, *own, *words, *kept, "hydra.mode=RUN", f"hydra.job.num={number}"]

    def ended(self, number: int, code: int) -> dict[str, Any]:
        """What became of a job whose process is gone: what it recorded, or how it was killed."""
        record = self.record(number)
        told = record.read()
        if told.get("outcome", "running") == "running":
            if self.got:
                record.end("stopped", "stopped before it could save")
            elif code < 0:
                why = ", as when memory runs out" if code == -signal.SIGKILL else ""
                record.end("failed", f"killed by {signal.Signals(-code).name}{why}")
            else:
                record.end("failed", f"its process ended with status {code}")
        return dict(record.read())

    def stop(self, number: int, frame: Any) -> None:
        """A signal: no more jobs; those that run save and stop. Once more: they are killed."""
        if self.got:
            self.kill(signal.SIGKILL)
            return
        self.got = number
        os.write(2, b"\nstopping: the jobs save and end; once more (Ctrl-C) kills them\n")
        self.kill(signal.SIGTERM)

    def kill(self, number: int) -> None:
        """Send a signal to all running jobs, and to their loaders."""
        for process, _ in self.running.values():
            try:
                os.killpg(process.pid or 0, number)
            except (ProcessLookupError, PermissionError):  # it is gone, or has not left our group yet
                process.kill() if number == signal.SIGKILL else process.terminate()


class Bar:
    """How many jobs have ended: a line that is redrawn on a terminal, elsewhere a line for each job that ends."""

    def __init__(self, jobs: int, n: int) -> None:
        self.jobs, self.n, self.done, self.bad = jobs, n, 0, 0
        self.began, self.drawn = time.monotonic(), 0.0
        self.terminal = sys.stderr.isatty()

    def draw(self, running: int) -> None:
        """Redraw the line, a few times a second at most."""
        if self.terminal and time.monotonic() - self.drawn > 0.2:
            self.drawn = time.monotonic()
            full = 24 * self.done // self.jobs
            left = f", {self.bad} not done" if self.bad else ""
            text = f"[{'#' * full}{'.' * (24 - full)}] {self.done}/{self.jobs}{left}, {running} running"
            self.say(f"{text}, {time.monotonic() - self.began:,.0f} s")

    def ended(self, number: int, name: str, told: dict[str, Any], running: int) -> None:
        """A job is over."""
        self.done += 1
        bad = told["outcome"] not in ("done", "skipped")
        self.bad += bad
        text = (
            f"{self.done}/{self.jobs} {told['outcome']:7} #{number} {name} ({told.get('seconds', 0):,.1f} s)"
        )
        if bad or not self.terminal:
            self.say(text + "\n")
        self.draw(running)

    def close(self) -> None:
        """Leave the line."""
        if self.terminal:
            self.say("")

    def say(self, text: str) -> None:
        """Write over the line on a terminal, under it elsewhere."""
        sys.stderr.write(f"\r\x1b[2K{text}" if self.terminal else text)
        sys.stderr.flush()


def devices() -> list[str]:
    """The GPUs that this process may use, asked without CUDA, which would not survive a fork."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    try:
        told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i in range(told.stdout.count("\nGPU ") + told.stdout.startswith("GPU "))]


def returned(words: list[str], record: Any) -> JobReturn:
    """A job for Hydra: its number, None where it failed."""
    job = JobReturn(overrides=words, status=JobStatus.COMPLETED)
    job.return_value = record.read().get("value")
    return job
