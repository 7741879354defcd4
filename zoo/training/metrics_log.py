"""metrics.csv: what a run measured, by optimizer step; the record that tables and figures are made from."""

import csv
import io
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

HEAD = "step,name,value\n"


class MetricsLog(Logger):
    """A file of lines `step,name,value`, on the disk line by line; the first process writes it, alone.

    path  the file; it is made with the first metric

    A checkpoint remembers how long the file was (`size`); a resumed run cuts it back to that (`cut`), so that
    each step stands in it once and in order. Lightning's own metric "epoch" is left out.
    Raises OSError if the disk is full; the lines before stay whole.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__()
        self.path = Path(path)

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    @rank_zero_only
    def cut(self, size: int) -> None:
        """Forget what was written after the first `size` bytes, and a line that was cut short."""
        if self.size() == 0:
            return
        with open(self.path, "r+b") as file:
            kept = file.read(size)
            file.truncate(kept.rfind(b"\n") + 1)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add one line per metric; `step` is the number of optimizer steps done."""
        lines = io.StringIO()
        rows = csv.writer(lines, lineterminator="\n")
        rows.writerows((step, name, repr(float(value))) for name, value in metrics.items() if name != "epoch")
        before = self.size()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = lines.getvalue() if before else HEAD + lines.getvalue()
        try:
            # unbuffered: a failed write must not be tried again when the file is closed
            with open(self.path, "ab", buffering=0) as file:
                _write_all(file, text.encode())
        except OSError as error:
            self.cut(before)
            raise OSError(
                f"{self.path} cannot be written ({error.strerror}); the lines and checkpoints of before are "
                "whole; make room and run the same command again"
            ) from error

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""


def _write_all(file: io.RawIOBase, data: bytes) -> None:
    """Write every byte: a nearly full disk takes a part and says so only in the count."""
    while data:
        data = data[file.write(data) :]
