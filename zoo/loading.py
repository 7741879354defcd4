"""From a run's folder to a model: for notebooks, for evaluation, and for whoever starts from another run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.config import build
from zoo.runs import Run
from zoo.training import checkpoint_files as files
from zoo.types import Scheduled, can


def load(
    run: str | Path, *, weights: str = "best", device: str | torch.device = "cpu", allow: Sequence[str] = ()
) -> nn.Module:
    """A run's model in evaluation mode, its weights loaded.

        model = zoo.load("runs/vae-digits-3f2a...")
        x = model.sample(16)

    weights   "best" by validation, or "last"; with an average of the weights (ema) it is the average
    allow     packages that the stored config may name, besides the zoo, torch, torchvision and lightning
    Raises FileNotFoundError where there is no run or no checkpoint, ValueError where one is damaged.
    """
    return restored(Run.open(run), weights, device, allow)[0]


def restored(
    run: Run, weights: str, device: str | torch.device, allow: Sequence[str] = ()
) -> tuple[nn.Module, dict[str, Any]]:
    """A run's model, and which weights it has."""
    model = build(run.config["model"], "model", stored=True, allow=allow)
    which = load_weights(model, run, weights)
    return model.to(device).eval(), which


def load_weights(model: nn.Module, run: Run, weights: str = "best") -> dict[str, Any]:
    """Copy a run's weights into a model; returns what they are: {"which", "averaged", "step"}.

    Raises ValueError where weights and model do not have the same parts, naming the first that differs.
    """
    path, which = weights_path(run, weights)
    checkpoint = files.load(path)
    state = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
    own = model.state_dict()
    for name in [*own, *state]:
        if name not in own or name not in state or own[name].shape != state[name].shape:
            sides = [tuple(part[name].shape) if name in part else "nothing" for part in (own, state)]
            raise ValueError(
                f"{path} does not fit {type(model).__name__}: {name} is {sides[0]} there, {sides[1]} in the file"
            )
    model.load_state_dict(state)
    if can(model, Scheduled):
        model.at(int(checkpoint["place"]["step"]))
    return {"which": which, "averaged": "raw" in checkpoint, "step": int(checkpoint["place"]["step"])}


def weights_path(run: Run, weights: str) -> tuple[Path, str]:
    """The checkpoint that "best" or "last" means, and which of the two it is: without validation the last is taken."""
    if weights not in ("best", "last"):
        raise ValueError(f"weights={weights}: best or last")
    best = run.checkpoints / "best.ckpt"
    if weights == "best" and best.exists():
        return best, "best"
    path, skipped = files.newest(run.checkpoints)
    if path is None:
        told = "; ".join(f"{p.name}: {reason}" for p, reason in skipped) or "the folder is empty"
        raise FileNotFoundError(f"{run.checkpoints} has no good checkpoint ({told})")
    return path, "last"


def device_of(name: str) -> torch.device:
    """auto: a GPU where there is one. ValueError for what is no device, and for CUDA that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name}: there is no CUDA device here; try device=cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise ValueError(f"device={name}: no such device; auto, cpu, cuda, cuda:1, mps") from None
