"""One training of one experiment at a time: a lock on its identity, gone with the process that holds it.

The locks lie beside the runs, in .locks, not in a run's own folder: that one may be deleted half-way.
"""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

RANKS = (
    "LOCAL_RANK",
    "RANK",
    "SLURM_PROCID",
)  # of several processes of one training the first holds the lock


class Busy(RuntimeError):
    """Another process trains this run now, and holds the lock."""

    def __init__(self, told: str, lock: Path) -> None:
        super().__init__(told)
        self.lock = lock


@contextlib.contextmanager
def held(folder: Path, identity: str, *, wait: bool = True) -> Iterator[None]:
    """The context in which this process alone trains an identity among the runs of a folder.

    wait    until another process has ended; else Busy is raised, with what is known of that process
    Where a file system knows no locks nothing is held.
    """
    if any(int(os.environ.get(name) or 0) for name in RANKS):
        yield
        return
    path = folder / ".locks" / identity[:32]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115  closed below
    except OSError:  # whoever makes the run's folder will tell why
        yield
        return
    with file:
        take(file, path, wait)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def take(file: IO[str], path: Path, wait: bool) -> None:
    """Lock an open file, or raise Busy."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return
        file.seek(0)
        told = f"another process trains it now ({file.read().strip() or 'it has just begun'})"
        if not wait:
            raise Busy(told, path) from None
        print(f"{told}; waiting for its end", flush=True)
        fcntl.lockf(file, fcntl.LOCK_EX)


def free(lock: Path) -> bool:
    """Whether no other process holds a lock."""
    try:
        with open(lock, "r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
