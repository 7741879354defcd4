"""The commands, called in this process: importing torch costs seconds, a call of main does not."""

import contextlib
import importlib.util
import io
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from conftest import ROOT

# the smallest models and the shortest trainings that still pass through everything
TINY = (
    "trainer=cpu",
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=2",
    "trainer.enable_progress_bar=false",
    "checkpoint_every=2",
    "batch_size=64",
    "evaluate.n=4",
    "evaluate.splits=[val]",
)
VAE = (
    "model=vae",
    "model.latent=2",
    "encoder.hidden=[8]",
    "decoder.hidden=[8]",
    "evaluate.log_prob.samples=2",
)
TRANSFORMER = ("model=transformer", "model.dim=8", "model.depth=1", "mixer.heads=2")


class Done(NamedTuple):
    """How a command ended: its exit status and what it said."""

    code: int
    out: str
    err: str


@cache
def program(name: str) -> ModuleType:
    """A command's module: train, evaluate, scripts/sample, scripts/compare."""
    path = ROOT / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"command_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def process(name: str, *words: str | Path, seconds: float = 120) -> Done:
    """The same, as a process of its own."""
    line = [sys.executable, str(ROOT / f"{name}.py"), *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=seconds)
    return Done(done.returncode, done.stdout, done.stderr)


def run(name: str, *words: str | Path) -> Done:
    """A command line, as if the words had been typed; a command returns its exit status, None or SystemExit."""
    from hydra.core.global_hydra import GlobalHydra

    argv, out, err = sys.argv, io.StringIO(), io.StringIO()
    GlobalHydra.instance().clear()
    sys.argv = [f"{name}.py", *map(str, words)]
    code: int = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = program(name).main() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = argv
        GlobalHydra.instance().clear()
    return Done(code, out.getvalue(), err.getvalue())


def train(folder: Path, *words: str | Path) -> Done:
    """train.py, tiny, a VAE on digits unless the words say otherwise; its runs are made in a folder."""
    model = () if any(str(word).startswith("model=") for word in words) else VAE
    return run("train", *TINY, *model, f"runs={folder}", *words)


def only(folder: Path) -> Path:
    """The one run of a folder."""
    (found,) = (path.parent for path in folder.glob("*/identity.json"))
    return found
