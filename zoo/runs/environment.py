"""Where a number was made: versions, machine, threads. Read without importing any of them."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "hydra-core",
    "omegaconf",
    "numpy",
    "wandb",
    "datasets",
    "tokenizers",
)


@cache
def version() -> str:
    """The code's version: the package's, and the commit where the code is a git checkout ("+dirty" if changed)."""
    from zoo import __version__

    root = Path(__file__).resolve().parents[2]
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty=.dirty", "--abbrev=10", "--exclude=*"],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{told.stdout.strip()}"


def environment(**more: Any) -> dict[str, Any]:
    """A plain mapping for environment.json; `more` is what only the caller knows (device, threads)."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return {
        "version": version(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "packages": found,
        **more,
    }


def processor() -> str:
    """The processor's name, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
