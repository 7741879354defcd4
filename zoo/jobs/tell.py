"""What a command says of a run: before it, what will be done; after it, what was found."""

import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.runs import Run
from zoo.training.loaders import Loaders


def banner(
    config: Mapping[str, Any], model: nn.Module, data: Loaders, run: Run, latest: Path | None, trainer: Any
) -> None:
    """What is trained, on what, for how long, and where it goes."""
    if not trainer.is_global_zero:
        return
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    accumulate, world = trainer.accumulate_grad_batches, trainer.world_size
    each = config["batch_size"] // (accumulate * world)
    position = getattr(getattr(model, "backbone", None), "position_name", None)
    facts = data.facts
    print(
        f"model     {type(model).__name__}, {count:,} parameters"
        + (f", position {position}" if position else "")
    )
    print(
        f"data      {facts['name']}: {len(data.dataset('train')):,} x {tuple(facts['shape'])}, {facts['levels']} levels"
    )
    print(
        f"batch     {config['batch_size']} = {each} per device x {world} devices x {accumulate} accumulated"
    )
    print(
        f"steps     {trainer.max_steps:,} on {trainer.strategy.root_device}, {torch.get_num_threads()} threads"
    )
    print(f"run       {run.folder}" + (f", goes on from {latest.name}" if latest else ""), flush=True)


def tell(run: Run) -> None:
    """The end of a run: its numbers, its samples, what it cost."""
    results = run.results
    print(told(results["numbers"]))
    seconds, memory = results.get("seconds", 0.0), results.get("peak_memory_mb")
    print(f"{results.get('steps', 0):,} steps in {seconds:,.0f} s, peak memory {memory} MB")
    print(f"samples and results: {run.folder}", flush=True)


def told(numbers: Sequence[Mapping[str, Any]]) -> str:
    """Numbers in lines: name, value, standard error, kind, split, and what of the protocol sets it apart."""
    lines = []
    for number in numbers:
        sign = "≤ " if number["kind"] == "lower bound" and number["name"] != "accuracy" else ""
        error = f" ± {number['stderr']:.2g}" if number.get("stderr") is not None else ""
        protocol = {k: v for k, v in number["protocol"].items() if k != "method" and v is not None}
        about = ", ".join(f"{k}={v}" for k, v in protocol.items())
        if number["value"] is None:
            lines.append(f"  {number['split']:5} {number['name']:16} –  ({number['reason']})")
            continue
        form = ".1e" if 0 < abs(number["value"]) < 5e-5 else ".4f"  # an error of 1e-6 is not 0
        value = f"{sign}{number['value']:{form}}{error} {number['unit']}".rstrip()
        lines.append(
            f"  {number['split']:5} {number['name']:16} {value}  ({number['kind']}{', ' + about if about else ''})"
        )
    return "\n".join(lines)


def device_name(config: Mapping[str, Any]) -> str:
    """The name of what a config trains on."""
    cpu = config["trainer"]["accelerator"] == "cpu" or not torch.cuda.is_available()
    return "cpu" if cpu else torch.cuda.get_device_name()


def peak_memory(device: torch.device) -> int:
    """The most memory that was in use, in MB: of the GPU, or of this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / 1e6 if sys.platform == "darwin" else most / 1e3)
