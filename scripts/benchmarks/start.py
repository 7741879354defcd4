"""train.py as it stands: from a warm environment to the samples of a trained model."""

import tempfile
from collections.abc import Iterator

from benchmarks.measure import Row, command

SECONDS = 90  # on two cores


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        command(["train.py", "--help"])
        cpu, wall, memory = command(["train.py", f"runs={folder}"])
    yield Row(
        "train.py, to the final samples",
        f"{wall:.0f} s wall",
        f"{SECONDS} s",
        [wall / SECONDS],
        most=1.0,
        note=f"{cpu:.0f} s of CPU, peak memory {memory:.0f} MB",
    )
