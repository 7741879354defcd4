"""All that is measured of a trained model: its likelihood, its health, its samples, by length and in time."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.evaluation import by_length, health, likelihood, speed, strided
from zoo.jobs import points, quality
from zoo.jobs.features import Places, extractor
from zoo.runs import environment, version
from zoo.training.loaders import Loaders
from zoo.types import Density, Measured, can

SPLITS = ("test", "val", "train")  # in the order in which they are measured


def answered(
    model: nn.Module,
    loaders: Loaders,
    asked: Mapping[str, Any],
    weights: Mapping[str, Any],
    *,
    seed: int = 0,
    batch_size: int | None = None,
    places: Places | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Numbers and curves that a config's `evaluate` asks for: of measure, of quality, by length and of speed."""
    common: dict[str, Any] = {"splits": asked["splits"], "weights": weights, "batch_size": batch_size}
    numbers = measure(
        model,
        loaders,
        log_prob=asked["log_prob"],
        seed=seed,
        examples=asked["examples"],
        stride=asked.get("stride"),
        metrics=asked.get("metrics"),
        **common,
    )
    numbers += qualities(model, loaders, asked, weights, seed=seed, places=places)
    curves: list[dict[str, Any]] = []
    multiples = asked.get("lengths") or []
    if multiples:
        more, curves = lengths(model, loaders, multiples, examples=asked["examples"], **common)
        numbers += more
    if asked.get("speed"):
        numbers += speeds(model, loaders, multiples or [1], **common)
    return numbers, curves


def measure(
    model: nn.Module,
    loaders: Loaders,
    *,
    splits: Sequence[str],
    log_prob: Mapping[str, Any],
    weights: Mapping[str, Any],
    seed: int = 0,
    batch_size: int | None = None,
    examples: int | None = None,
    stride: int | None = None,
    metrics: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """All that a model's contracts offer, over those of the splits that there are, the test split first; over val
    where there are none of them.

    weights     which weights these are (which, averaged, step): it stands in every number
    examples    only so many of each split, evenly spread; it stands in the protocol
    stride      a text's likelihood is told in windows that overlap (zoo.evaluation.strided)
    metrics     nll, health: only these of what the model can; None: both, but for a likelihood on request
    Raises ValueError for options that the model's log_prob has not.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1; null takes that of the training")
    batch_size = batch_size or loaders.batch_size
    device = next(model.parameters()).device
    numbers: list[dict[str, Any]] = []
    for split in found(loaders, splits):
        dataset = loaders.dataset(split)
        protocol = {**getattr(dataset, "protocol", {}), **getattr(model, "protocol", {})}
        counts = getattr(dataset, "counts", None)
        if examples is not None and examples < len(dataset):
            protocol["examples"] = f"{examples} evenly spread of {len(dataset)}"
        common: dict[str, Any] = {"split": split, "protocol": protocol, "seed": seed}
        asked_for = not getattr(model, "on_request", False) if metrics is None else "nll" in metrics
        if can(model, Density) and asked_for:
            batches, how = on(device, loaders.loader(split, batch_size, examples)), {}
            if stride is not None:
                batches, how = strided(
                    dataset, stride, batch_size=batch_size, examples=examples, device=device
                )
            told = {**common, "protocol": {**protocol, **how}}
            numbers += likelihood(
                model, batches, facts=loaders.facts, options=log_prob, counts=counts, **told
            )
        if can(model, Measured) and (metrics is None or "health" in metrics):
            found_out = health(model, on(device, loaders.loader(split, batch_size, examples)), **common)
            numbers += found_out
            if hasattr(model, "unwell"):
                for sentence in model.unwell({number["name"]: number["value"] for number in found_out}):
                    print(f"{split}: {sentence}", file=sys.stderr)
    return stamped(numbers, weights)


def qualities(
    model: nn.Module,
    loaders: Loaders,
    asked: Mapping[str, Any],
    weights: Mapping[str, Any],
    *,
    seed: int = 0,
    places: Places | None = None,
) -> list[dict[str, Any]]:
    """The numbers of zoo.jobs.quality: of samples beside the first of the splits, of reconstructions of each."""
    metrics = set(asked.get("metrics") or ())
    extract = None
    if quality.sees(metrics):
        extract = extractor(asked, loaders, places, next(model.parameters()).device)
    numbers: list[dict[str, Any]] = []
    splits = found(loaders, asked["splits"]) or [asked.get("reference", "train")]
    if metrics & set(quality.SAMPLED):
        numbers += quality.sampled(model, loaders, asked, extract, split=splits[0], seed=seed)
    if metrics & set(points.METRICS):
        numbers += points.measured(model, loaders, asked, split=splits[0], seed=seed)
    if metrics & set(quality.RECONSTRUCTED):
        for split in splits:
            seen = extract if "rfid" in metrics else None
            numbers += quality.reconstructed(model, loaders, asked, seen, split=split, seed=seed)
    return stamped(numbers, weights)


def lengths(
    model: nn.Module,
    loaders: Loaders,
    multiples: Sequence[int],
    *,
    splits: Sequence[str],
    weights: Mapping[str, Any],
    batch_size: int | None = None,
    examples: int | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The numbers and curves of zoo.evaluation.by_length, over the splits that measure takes."""
    numbers: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for split in found(loaders, splits):
        dataset = loaders.dataset(split)
        more = by_length(
            model,
            dataset,
            multiples,
            facts=loaders.facts,
            split=split,
            protocol={**getattr(dataset, "protocol", {}), **getattr(model, "protocol", {})},
            batch_size=batch_size or loaders.batch_size,
            examples=examples,
            device=next(model.parameters()).device,
        )
        numbers += more[0]
        curves += more[1]
    return stamped(numbers, weights), stamped(curves, weights)


def speeds(
    model: nn.Module,
    loaders: Loaders,
    multiples: Sequence[int],
    *,
    splits: Sequence[str],
    weights: Mapping[str, Any],
    batch_size: int | None = None,
) -> list[dict[str, Any]]:
    """The numbers of zoo.evaluation.speed, on the first batch of the first of the splits, with the hardware."""
    device = next(model.parameters()).device
    (split, *_) = found(loaders, splits or SPLITS)
    batch = next(on(device, loaders.loader(split, batch_size or loaders.batch_size)))
    about = environment()
    gpu = device.type == "cuda"
    hardware = {
        "device": torch.cuda.get_device_name(device) if gpu else about["processor"],
        "threads": None if gpu else torch.get_num_threads(),
        "torch": about["packages"]["torch"],
    }
    return stamped(speed(model, batch, multiples, split=split, hardware=hardware), weights)


def found(loaders: Loaders, splits: Sequence[str]) -> list[str]:
    """Those of the splits that there are, the test split first; val, or train, where there are none of them."""
    there = [split for split in SPLITS if split in splits and loaders.has(split)]
    if splits and not there:
        there = [split for split in ("val", "train") if loaders.has(split)][:1]
    return there


def stamped(records: Sequence[Mapping[str, Any]], weights: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Numbers or curves, with what was measured: which weights, which code, when."""
    stamp = {"weights": dict(weights), "version": version(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    return [{**record, **stamp} for record in records]


def on(device: torch.device, batches: Any) -> Iterator[dict[str, Tensor]]:
    """Batches, moved to a device one after the other."""
    for batch in batches:
        yield {name: value.to(device) for name, value in batch.items()}
