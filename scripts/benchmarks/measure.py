"""Ratios that hold on a busy machine: candidates in shuffled, interleaved rounds, by CPU time.

A ratio is the median over rounds of candidate / baseline in the same round; its spread is the middle half.
"""

import importlib.metadata
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = (
    *("torch", "torchvision", "lightning", "hydra-core", "pythae", "transformers"),
    *("mambapy", "performer-pytorch", "linear-attention-transformer"),
    *("vector-quantize-pytorch", "diffusers", "nflows", "normflows"),
    "denoising-diffusion-pytorch",
)
INSTALL = "not installed: uv sync --group bench"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    ours, theirs   what was measured of each, with its unit
    ratios         one per round
    most, least    the target: the median ratio is at most, or at least, this
    """

    what: str
    ours: str = ""
    theirs: str = ""
    ratios: Sequence[float] = field(default=(), repr=False)
    most: float | None = None
    least: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The quartiles of the ratios."""
        if len(self.ratios) < 3:
            return None
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high

    @property
    def met(self) -> bool | None:
        """None where there is no target or no measurement."""
        if self.ratio is None or (self.most is None and self.least is None):
            return None
        return self.ratio <= self.most if self.most is not None else self.ratio >= (self.least or 0.0)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"ratio": self.ratio, "spread": self.spread, "met": self.met}

    def cells(self) -> list[str]:
        """For the table."""
        target = f"≤ {self.most:g}" if self.most is not None else f"≥ {self.least:g}" if self.least else ""
        ratio = "" if self.ratio is None else _short(self.ratio)
        spread = "" if self.spread is None else "–".join(map(_short, self.spread))
        met = {True: "yes", False: "NO", None: ""}[self.met]
        return [self.what, self.ours, self.theirs, ratio, spread, target, met, self.note]


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    head = ["what", "ours", "theirs", "ratio", "middle half", "target", "met", "note"]
    lines = [head, ["---"] * len(head), *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines
    )


def interleaved(
    candidates: Mapping[str, Callable[[], float | None]], rounds: int, *, warm: int = 1
) -> dict[str, list[float]]:
    """CPU seconds of each candidate in each round, in a new order each time; `warm` rounds don't count.

    A candidate that returns a number has measured itself, and this number counts.
    """
    order, chance = list(candidates), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for done in range(-warm, rounds):
        chance.shuffle(order)
        for name in order:
            before = time.process_time()
            own = candidates[name]()
            spent = time.process_time() - before if own is None else own
            if done >= 0:
                seconds[name].append(spent)
    return seconds


def over(top: Sequence[float], bottom: Sequence[float]) -> list[float]:
    """The ratio in each round."""
    return [a / b for a, b in zip(top, bottom, strict=True)]


def ms(seconds: Sequence[float], n: int = 1) -> str:
    """The median in ms, of one of n."""
    return f"{statistics.median(seconds) / n * 1e3:.3g} ms"


def command(words: Sequence[str], **environment: str) -> tuple[float, float, float]:
    """CPU seconds, wall seconds and peak memory in MB of a Python program; RuntimeError where it fails."""
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with status {child.returncode}")
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return used.ru_utime + used.ru_stime, time.monotonic() - began, used.ru_maxrss / unit


def machine() -> dict[str, str]:
    """What was measured on, and with which versions."""
    facts = {"processor": platform.processor() or platform.machine(), "cores": str(os.cpu_count())}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(": ")[2] for line in cpuinfo.read_text().splitlines() if "model name" in line]
        facts["processor"] = names[0] if names else facts["processor"]
    facts["python"] = platform.python_version()
    for name in PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "absent"
    return facts


def _short(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 20 else f"{ratio:.2f}"
