"""Measure a trained model and write the numbers into its run's folder, each with its protocol."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from zoo.config import build
from zoo.config.build import fits
from zoo.evaluation import by_length, draw, health, likelihood, options_in_force, save, speed, strided
from zoo.evaluation.length import check as check_lengths
from zoo.evaluation.speed import check as check_speed
from zoo.evaluation.stride import check as check_stride
from zoo.jobs import data as jobs_data
from zoo.jobs import points, quality
from zoo.jobs.features import Places, extractor
from zoo.loading import device_of, restored
from zoo.runs import Run, environment, version
from zoo.runs.reproduction import numbers_of
from zoo.training.loaders import Loaders
from zoo.types import Density, Measured, Sampler, can

SPLITS = ("test", "val", "train")  # in the order in which they are measured


def opened(asked: Mapping[str, Any]) -> tuple[Run, dict[str, Any], nn.Module, Loaders, dict[str, Any]]:
    """The run that a command asks for: itself, its config, model and loaders, and which weights the model has."""
    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    run = Run.open(asked["run"])
    config = jobs_data.relocated(run.config, asked["data_dir"])
    model, weights = restored(run, asked["weights"], device_of(asked["device"]), asked["allow"])
    data = jobs_data.loaders(config, stored=True, allow=asked["allow"])
    check(model, {"splits": (), "log_prob": {}, **asked}, data, places(asked, run))
    show_steps(model)
    return run, config, model, data, weights


def places(asked: Mapping[str, Any], run: Run) -> Places:
    """Where a command finds networks for features: its data, and the runs beside the one that it is about."""
    return Places(asked["data_dir"], run.folder.parent)


def loggers(
    nodes: Mapping[str, Any] | None, run: Run, config: dict[str, Any], job_type: str = "train", **stored: Any
) -> list[Any]:
    """The loggers that a config names, besides the run's own folder; whoever asked for them finishes them.

    stored is zoo.config.build's: whether the names come from a run's folder, and which packages they may name.
    """
    group = Path(config["runs"]).name
    about = {"name": run.folder.name, "config": config, "group": group, "job_type": job_type}
    return [
        build(node, f"logger.{name}", **stored)(run.folder, run.identity, **about)
        for name, node in (nodes or {}).items()
    ]


def check(model: nn.Module, asked: Mapping[str, Any], loaders: Loaders, places: Places | None = None) -> None:
    """Raise ValueError for what a config's `evaluate` asks for in vain: before a training, not after it."""
    for split in asked["splits"]:
        if split not in SPLITS:
            raise ValueError(f"splits={split}: there are {', '.join(SPLITS)}")
    if asked["weights"] not in ("best", "last"):
        raise ValueError(f"weights={asked['weights']}: best or last")
    wanted = asked.get("lengths") or []
    if not isinstance(wanted, list) or not all(isinstance(m, int) and m >= 1 for m in wanted):
        raise ValueError(f"lengths={wanted}: multiples of the training length are whole numbers, at least 1")
    for split in found(loaders, asked["splits"]) if wanted else ():
        check_lengths(model, loaders.dataset(split), wanted, loaders.facts, split)
    if (stride := asked.get("stride")) is not None:
        for split in found(loaders, asked["splits"]):
            check_stride(model, loaders.dataset(split), stride, loaders.facts, split, **asked["log_prob"])
    if asked.get("speed"):
        check_speed(model, loaders.facts["shape"])
    if asked["n"] < 0:
        raise ValueError(f"n={asked['n']}: 0 or more samples can be drawn")
    quality.check(model, asked, loaders, places)
    for contract, name in ((Density, "log_prob"), (Sampler, "sample")):
        if can(model, contract):
            hints = get_type_hints(getattr(model, name))
            for option in options_in_force(getattr(model, name), asked[name], name):
                if option in asked[name] and not fits(value := asked[name][option], hints.get(option, Any)):
                    raise ValueError(
                        f"{name}.{option}={value!r}: the model's {name} takes {hints[option]} there"
                    )


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


def add(run: Run, numbers: Sequence[Mapping[str, Any]], curves: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write numbers into results.json: one of the same name, split, protocol and weights is replaced; so for curves.

    What a number was compared with, the one in its place is compared with too, unless it says something else.
    """

    def same(record: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(record.get(key)) for key in ("name", "split", "protocol", "weights"))

    results = run.results
    results["numbers"] = numbers_of(results)
    papers = {same(n): n["published"] for n in results["numbers"] if n.get("published")}
    numbers = [{"published": papers[same(n)], **n} if same(n) in papers else n for n in numbers]
    for key, records in (("numbers", numbers), ("curves", curves)):
        new = {same(record) for record in records}
        kept = [record for record in results.get(key, []) if same(record) not in new]
        if kept or records or key == "numbers":
            results[key] = [*kept, *records]
    run.write_results(results)


def show(numbers: Sequence[Mapping[str, Any]], logs: Sequence[Any], step: int) -> None:
    """Numbers in the loggers, as test/nats."""
    for log in logs:
        shown = {f"{n['split']}/{n['name']}": n["value"] for n in numbers if n["value"] is not None}
        log.log_metrics(shown, step)


def sample(
    model: nn.Module,
    loaders: Loaders,
    run: Run,
    name: str,
    *,
    n: int,
    options: Mapping[str, Any],
    seed: int = 0,
    y: Tensor | None = None,
    loggers: Sequence[Any] = (),
    step: int = 0,
) -> Path | None:
    """Draw n samples into the run's folder, as a picture or as text, points as both; returns the path, the picture's.

    None where the model cannot sample, or n is 0.
    """
    if n == 0 or not can(model, Sampler):
        return None
    x, force = draw(model, n, y=y, options=options, seed=seed)
    split = next(split for split in ("train", "val", "test") if loaders.has(split))
    path, shown = save(x, loaders.facts, run.samples / name, getattr(loaders.dataset(split), "decode", None))
    told = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in force.items()}
    drawn = [path]
    if points.plane(loaders.facts):
        beside = path.with_name(f"{name}.png")
        drawn += filter(None, [points.picture(model, x, loaders.dataset(split), beside, y=y, seed=seed)])
    results = run.results
    for file in drawn:
        about = {"n": n, "seed": seed, "options": told, "step": step}
        results.setdefault("samples", {})[file.name] = about
    run.write_results(results)
    for logger in loggers:
        if hasattr(logger, "samples"):
            logger.samples(step, shown[None] if isinstance(shown, Tensor) else shown)
    return drawn[-1]


def prompt(loaders: Loaders, text: str, n: int) -> Tensor:
    """A text's tokens, (n, P): what n samples begin with. ValueError for data that are no text."""
    encode = getattr(loaders.dataset("train"), "encode", None)
    if encode is None:
        raise ValueError(f"prompt={text!r}: {loaders.facts['name']} is no text")
    return encode(text).expand(n, -1)


def labels(model: nn.Module, loaders: Loaders, y: int | None, n: int) -> Tensor | None:
    """One label for n samples, (n,). ValueError where the model takes none, or the data have no such class."""
    if y is None:
        return None
    classes = loaders.facts.get("classes")
    if not getattr(model, "conditional", False):
        raise ValueError(f"y={y}: this {type(model).__name__} was not trained with labels (conditional=true)")
    if hasattr(loaders.dataset("train"), "told"):
        raise ValueError(f"y={y}: {loaders.facts['name']} has captions, not labels; give caption='...'")
    if not classes or not 0 <= y < classes:
        raise ValueError(f"y={y}: {loaders.facts['name']} has the classes 0 to {(classes or 0) - 1}")
    return torch.full((n,), y, device=next(model.parameters()).device)


def caption(model: nn.Module, loaders: Loaders, text: str, n: int) -> Tensor:
    """A caption's tokens for n samples, (n, L). ValueError where the model or the data have no captions."""
    tell = getattr(loaders.dataset("train"), "told", None)
    if tell is None or not getattr(model, "conditional", False):
        raise ValueError(
            f"caption={text!r}: this {type(model).__name__} was not trained with captions (condition=caption)"
        )
    return tell(text).expand(n, -1).to(next(model.parameters()).device)


def show_steps(model: nn.Module) -> None:
    """Have a model that samples step by step tell of it, where someone sits before the screen."""
    for part in model.modules():
        if hasattr(part, "watch") and sys.stderr.isatty():
            part.watch = Steps()


class Steps:
    """Draws the step that a sampler is at, a few times a second."""

    def __init__(self) -> None:
        self.drawn = 0.0

    def __call__(self, i: int, t: Any, x: Any) -> None:
        if (now := time.monotonic()) - self.drawn > 0.2:
            self.drawn = now
            print(f"\rsampling  step {i}, {len(x)} at once ", end="\r", file=sys.stderr, flush=True)


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
