"""What a command would do, before it does anything: what is trained, what it costs, what is finished, what cannot be.

Nothing is trained, and nothing is written but the cache.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig

from zoo.config import build, explain
from zoo.evaluation.cost import cost
from zoo.jobs import budget, compose, evaluate, known
from zoo.jobs.data import loaders
from zoo.jobs.fit import refuse
from zoo.jobs.match import matched
from zoo.runs import identity
from zoo.runs.sweep import varying
from zoo.training import devices

NOTE = (
    "memory, of each device: weights, gradients, the optimizer's moments, and what one micro-batch keeps for its "
    "backward pass; FLOPs: of training on one example"
)
SIDE = 64  # of the matrix that an optimizer's moments are counted on


def show(jobs: Sequence[Sequence[str]], composed: Any) -> None:
    """Print a sweep's grid. Raises explain.Told where a combination is invalid: its sentence stands in the grid."""
    rows = []
    costs: dict[str, Any] = {}
    for words, name in zip(jobs, varying(jobs)):
        try:
            rows.append({"words": name, **row(*composed.parts(words), costs)})
        except Exception as error:
            told = explain.sentence(error).splitlines()[0].removeprefix("error: ")
            rows.append({"words": name, "invalid": told})
    print(table(rows))
    counts = [sum(row.get("state") == state for row in rows) for state in ("new", "unfinished", "finished")]
    bad = sum("invalid" in row for row in rows)
    print(
        f"{len(rows)} jobs: {counts[0]} new, {counts[1]} to go on with, {counts[2]} finished, {bad} invalid"
    )
    print(NOTE, flush=True)
    if bad:
        raise explain.Told(f"{bad} invalid")


def single(config: DictConfig, name: str) -> None:
    """Print what one training would be. Raises what it would raise."""
    print(table([{"words": "", **row(config, name, {})}]))
    print(NOTE, flush=True)


def row(config: DictConfig, name: str, costs: dict[str, Any]) -> dict[str, Any]:
    """What one training would be: run, state, parameters, memory in bytes, FLOPs per example.

    costs   of models that were measured before
    Raises what the training would raise before its first step.
    """
    reached = None
    if config.match:
        config = matched(config)
        reached = f"{config.match.width}={config.match.value}"
    whole = compose.plain(config)
    refuse(whole)
    data = loaders(whole)
    for split in ("train", "val", "test"):
        data.has(split)
    known.remember(whole, data.fingerprints)
    whole = budget.within(whole, data, {})
    told = identity(whole, data.fingerprints)
    run = known.placed(whole["runs"], name, told)
    data.loader("train")  # which refuses a batch that cannot be cut
    key = json.dumps([whole[part] for part in ("model", "dataset", "optimizer")], sort_keys=True, default=str)
    if key not in costs:
        model = build(whole["model"], "model")
        batch = next(iter(data.loader("train", budget.EXAMPLES, budget.EXAMPLES)))
        costs[key] = cost(model, batch) | {"moments": moments(whole["optimizer"])}
        evaluate.check(model, whole["evaluate"], data, evaluate.places(whole, run))
    own = costs[key]
    micro = whole["batch_size"] / (whole["trainer"]["accumulate_grad_batches"] * devices.count(whole))
    memory = own["weights"] * (1 + (whole["ema"] is not None)) + own["gradients"] * (1 + own["moments"])
    state = "finished" if run.finished else "unfinished" if run.identity else "new"
    return {
        "run": run.folder.name,
        "state": state,
        "parameters": own["parameters"],
        "memory": memory + micro * own["activations"],
        "flops": own["flops_per_example"],
        "steps": whole["trainer"]["max_steps"],
        "matched": reached,
    }


def moments(node: Mapping[str, Any]) -> float:
    """How many numbers an optimizer keeps for each weight: 2 for Adam. Found out by a step of it."""
    matrix = torch.nn.Parameter(torch.zeros(SIDE, SIDE))
    optimizer = build({key: value for key, value in node.items() if key != "groups"}, "optimizer")([matrix])
    matrix.grad = torch.ones_like(matrix)
    optimizer.step()
    state = [t for t in optimizer.state[matrix].values() if isinstance(t, torch.Tensor) and t.dim()]
    return sum(t.numel() for t in state) / matrix.numel()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The grid as aligned text; an invalid row has its sentence instead of numbers."""
    head = ["#", "run", "state", "parameters", "memory", "FLOPs", "steps", "job"]
    lines = [head]
    for number, told in enumerate(rows):
        if "invalid" in told:
            lines.append([str(number), "invalid", "", "", "", "", "", told["words"]])
            continue
        numbers = [f"{told['parameters']:,}", f"{told['memory'] / 1e6:,.1f} MB", short(told["flops"])]
        words = " ".join(part for part in (told["words"], told["matched"]) if part)
        lines.append([str(number), told["run"], told["state"], *numbers, f"{told['steps']:,}", words])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    for number, told in reversed(list(enumerate(rows))):
        if "invalid" in told:
            text.insert(number + 2, f"     {told['invalid']}")
    return "\n".join(text)


def short(number: float) -> str:
    """1.2 M."""
    for unit in ("", " k", " M", " G", " T"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} P"
