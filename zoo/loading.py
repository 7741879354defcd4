"""From a run's folder to a model: for notebooks, for evaluation, and for whoever starts from another run.

A model of two stages names the run of its first one in its config. The first stage is copied into the second one's
folder, so that this stands alone; `at_home` makes a config look there.
"""

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.config import build
from zoo.config.build import targets
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
    model = build(at_home(run.config, run)["model"], "model", stored=True, allow=allow)
    which = load_weights(model, run, weights)
    return model.to(device).eval(), which


def pretrained(run: str | Path, *, weights: str = "best", allow: Sequence[str] = ()) -> nn.Module:
    """A run's model as a part of another one, frozen and in evaluation mode.

        codec: {_target_: zoo.pretrained, run: runs/vqvae-cifar10-3f2a...}

    Its `origin` tells which run, which weights and which step: an identity's first twelve digits, "best", 1000; its
    `results` are the run's numbers by name.
    Raises what load raises.
    """
    opened = Run.open(run)
    model, which = restored(opened, weights, "cpu", allow)
    identity = opened.identity or "unknown"
    model.origin = f"{identity[:12]}, {which['which']} weights at step {which['step']}"
    model.results = {number["name"]: number["value"] for number in opened.results.get("numbers", [])}
    return model.requires_grad_(False)


def adopt(config: Mapping[str, Any], run: Run) -> None:
    """Copy the first stages that a config names into a run's own folder, those that are not there yet.

    Of each its config, its identity, its results and the chosen weights, without the optimizer's moments.
    """
    for place, node in stages(config):
        source, home = Run.open(node["run"]), Run(run.folder / "stages" / place)
        if home.identity is not None:
            continue
        path, _ = weights_path(source, node.get("weights", "best"))
        content = files.load(path)
        kept = {name: content[name] for name in ("state_dict", "place")}
        averaged = {"raw": {}} if "raw" in content else {}
        files.write(kept | averaged, home.checkpoints / path.name)
        shutil.copyfile(source.config_path, home.config_path)
        if source.results_path.exists():
            shutil.copyfile(source.results_path, home.results_path)
        if (source.folder / "stages").exists():
            shutil.copytree(source.folder / "stages", home.folder / "stages", dirs_exist_ok=True)
        shutil.copyfile(
            source.folder / "identity.json", home.folder / "identity.json"
        )  # last: it is whole now


def at_home(config: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """A config whose first stages are those in the run's own folder, as far as they are there."""
    own = copy.deepcopy(dict(config))
    for place, node in stages(own):
        if (home := run.folder / "stages" / place).joinpath("identity.json").is_file():
            node["run"] = str(home)
    return own


def stages(config: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The nodes of a config that name a pretrained model, each with the name of its folder: [("codec", {...})].

    A choice of a group stands in a config twice, as `perceptual` and as `model.perceptual`: that is one folder.
    """
    return [
        (place.removeprefix("model."), node)
        for place, node in targets(config)
        if node["_target_"] == "zoo.pretrained"
    ]


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
