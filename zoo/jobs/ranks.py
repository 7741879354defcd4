"""A training on several devices: a process for each, which are started here unless torchrun or srun did.

The first, rank 0, does what a training in one process does; the others only train. They are started with the whole
resolved config, never with a command line: so each job of a sweep has processes of its own.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from zoo.config import explain
from zoo.jobs.data import loaders as make_loaders
from zoo.jobs.fit import fit, made
from zoo.jobs.latents import encode_once
from zoo.loading import at_home
from zoo.runs import Run
from zoo.training import checkpoint_files as files
from zoo.training import devices
from zoo.training.loaders import Loaders

GRACE = 5.0  # seconds that the others have to end by themselves once one has failed
LATE = 0.2  # seconds after which a rank's end is surely seen, and before which nobody misses it
STOPPED = (
    128 + signal.SIGTERM,
    128 + signal.SIGINT,
)  # exit codes of a training that was told to stop, and saved


def start(
    config: dict[str, Any],
    name: str,
    run: Run,
    whole: str,
    stored: Mapping[str, Any],
    choices: Mapping[str, str] | None = None,
) -> Run:
    """Train one run by as many processes as the config has devices; returns it when all have ended.

    SIGTERM and SIGINT are handed on to all, and so the training saves and stops: SystemExit(128 + signal). Where
    one fails, the others are ended. Raises ChildProcessError with the sentence of the one that failed first.
    """
    count = devices.count(config)
    with tempfile.TemporaryDirectory() as reports:
        order = {
            "config": config, "name": name, "folder": str(run.folder), "identity": whole, "stored": dict(stored),
            "choices": choices, "reports": reports,
        }  # fmt: skip
        # the meeting place is here: in a rank that froze it would keep the others waiting
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        ranks = [launched(rank, count, store.port, order) for rank in range(count)]
        with handed_on(ranks) as got:
            ended = watched(ranks)
        codes = [process.returncode for process in ranks]
        if got or any(code in STOPPED for code in codes):
            raise SystemExit(128 + got[0] if got else next(code for code in codes if code in STOPPED))
        if any(codes):
            told, trace = first(ended, codes, Path(reports))
            if run.results:
                run.write_results(run.results | {"status": "failed", "reason": told})
            if trace and "debug=trace" in sys.argv:
                print(trace, file=sys.stderr)
            raise ChildProcessError(told)
    run.worked = True
    return run


def launched(rank: int, count: int, port: int, order: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """The process of one rank. Its standard input is its order, and ends with this process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "zoo.jobs.ranks"],
        stdin=subprocess.PIPE,
        env=os.environ | environment(rank, count, port),
        start_new_session=True,  # a terminal's Ctrl-C comes to this process alone, which hands it on once
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(order).encode() + b"\n")
    process.stdin.flush()
    return process


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What one rank finds in its environment, beside what this process has there: torchrun's words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count))),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP warns of what configs/trainer/ddp.yaml says
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }  # fmt: skip


@contextlib.contextmanager
def handed_on(ranks: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """The context in which signals are the ranks' to answer; gives those that came. No rank survives it."""
    got: list[int] = []

    def note(number: int, frame: Any) -> None:
        got.append(number)
        for process in ranks:
            process.send_signal(number)

    main = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)} if main else {}
    try:
        yield got
    finally:
        for process in ranks:
            process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def watched(ranks: list[subprocess.Popen[bytes]]) -> dict[int, float]:
    """Wait until all have ended, or one has failed and the others had time to end; when each was seen to fail."""
    failed: dict[int, float] = {}
    while None in [process.poll() for process in ranks]:  # all of them: any() would stop at the first
        for rank, process in enumerate(ranks):
            if process.returncode and process.returncode not in STOPPED:
                failed.setdefault(rank, time.time())
        if failed and time.time() - min(failed.values()) > GRACE:
            break
        time.sleep(0.05)
    for rank, process in enumerate(ranks):
        if process.returncode and process.returncode not in STOPPED:
            failed.setdefault(rank, time.time())
    return failed


def first(failed: Mapping[int, float], codes: list[int], reports: Path) -> tuple[str, str | None]:
    """What the rank that failed first says, and its traceback: what the others lost is that rank."""
    told: list[tuple[float, str, str | None, bool]] = []
    for rank, seen in failed.items():
        who, path = f"rank {rank} of {len(codes)}", reports / str(rank)
        if path.exists():
            report = json.loads(path.read_text())
            told.append((report["time"], f"{who}: {report['sentence']}", report["trace"], report["lost"]))
        elif codes[rank] < 0:
            told.append((seen - LATE, f"{who} was ended by {signal.Signals(-codes[rank]).name}", None, False))
        else:
            told.append((seen, f"{who} ended with status {codes[rank]}", None, False))
    _, sentence, trace, lost = min(told, key=lambda one: one[0])
    silent = [rank for rank in range(len(codes)) if rank not in failed]  # which all others had given up
    return f"rank {silent[0]} of {len(codes)} did not answer any more" if lost and silent else sentence, trace


def follow(config: dict[str, Any], run: Run, data: Loaders, stored: Mapping[str, Any]) -> Run:
    """Train along with rank 0, which has made the run's folder when all have met, and write nothing."""
    if run.finished and not config["rerun"]:
        return run
    devices.join(config)
    latest, _ = files.newest(run.checkpoints)
    model = made(at_home(config, run), data, fresh=latest is None, **stored)
    device = torch.device("cuda" if devices.on_gpus(config) else "cpu")
    encode_once(model, data, config["trainer"]["max_steps"] * config["batch_size"], device)
    fit(config, model, data, run, latest, [], stored)
    return run


def main() -> None:
    """A process that `launched` started."""
    order = json.loads(os.fdopen(os.dup(sys.stdin.fileno()), "rb").readline())
    threading.Thread(target=die_with_parent, daemon=True).start()
    obey(order)


def obey(order: Mapping[str, Any]) -> None:
    """Train as one of the ranks. What goes wrong is told in a report, and ends the process."""
    try:
        config, stored, run = order["config"], order["stored"], Run(order["folder"])
        if config["threads"]:
            torch.set_num_threads(config["threads"])
        data = make_loaders(config, **stored)
        for split in ("train", "val", "test"):
            data.has(split)
        if devices.rank():
            follow(config, run, data, stored)
        else:
            from zoo.jobs.train import trained

            trained(config, order["name"], run, order["identity"], data, stored, order["choices"])
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        report = {
            "time": time.time(),
            "sentence": explain.sentence(error).removeprefix("error: "),
            "trace": "".join(traceback.format_exception(error)),
            "lost": isinstance(error, ConnectionError),
        }
        path = Path(order["reports"]) / f".{devices.rank()}"
        path.write_text(json.dumps(report))
        path.rename(path.with_name(str(devices.rank())))
        sys.stdout.flush()
        os._exit(1)  # at once: the others wait for this process


def die_with_parent() -> None:
    """End when the process that gave the order has ended, however it did."""
    os.read(sys.stdin.fileno(), 1)  # unbuffered: a thread that holds a buffer's lock would spoil the exit
    os._exit(1)


if __name__ == "__main__":
    main()
