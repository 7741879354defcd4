"""The quality of a run's samples and reconstructions, with its protocol, beside that of real images."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo import chance
from zoo.evaluation import drawn, nfe, options_in_force, told
from zoo.evaluation.features import Extractor
from zoo.evaluation.quality import NEAREST, Features, frechet, gathered, kid, prdc
from zoo.jobs import points
from zoo.jobs.features import Places, features, images, labels, network, real, told_of
from zoo.nn import fidelity
from zoo.training.loaders import Loaders
from zoo.types import Codec, Density, Sampler, can

SAMPLED = ("fid", "kid", "prdc")
RECONSTRUCTED = ("reconstruction", "rfid")
METRICS = ("nll", "health", *SAMPLED, *RECONSTRUCTED, *points.METRICS)
SPLITS = ("train", "val", "test")
SUBSETS, SIZE = 100, 1000  # of kid


def check(model: nn.Module, asked: Mapping[str, Any], loaders: Loaders, places: Places | None = None) -> None:
    """Raise ValueError for a metric that there is not, or that cannot be had of this model and data."""
    metrics, name = asked.get("metrics"), type(model).__name__
    if metrics is None:
        return
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(f"metrics={metric}: there are {', '.join(METRICS)}")
    if "nll" in metrics and not can(model, Density):
        raise ValueError(f"metrics=nll: {name} has no likelihood")
    points.check(model, set(metrics), loaders)
    if set(metrics) & set(points.METRICS) and asked["samples"] < 2:
        raise ValueError(f"samples={asked['samples']}: 2 or more are drawn for {', '.join(points.METRICS)}")
    images = loaders.facts.get("kind") == "image" and loaders.facts.get("levels")
    for metric in metrics:
        contract, does = (Sampler, "draws no samples") if metric in SAMPLED else (Codec, "has no latents")
        if metric in (*SAMPLED, *RECONSTRUCTED):
            if not images:
                raise ValueError(
                    f"metrics={metric} is of images of integers, not {loaders.facts.get('name')}"
                )
            if not can(model, contract):
                raise ValueError(f"metrics={metric}: {name} {does}")
    if set(metrics) & set(SAMPLED):
        if asked["samples"] <= NEAREST:
            raise ValueError(
                f"samples={asked['samples']}: more than {NEAREST} are drawn for {', '.join(SAMPLED)}"
            )
        if asked["reference"] not in SPLITS or not loaders.has(asked["reference"]):
            raise ValueError(f"reference={asked['reference']}: {loaders.facts['name']} has no such split")
    if sees(metrics):
        network(asked, loaders, places)


def sees(metrics: Iterable[str]) -> bool:
    """Whether metrics take features."""
    return bool(set(metrics) & {*SAMPLED, "rfid"})


def sampled(
    model: nn.Module,
    loaders: Loaders,
    asked: Mapping[str, Any],
    extract: Extractor,
    *,
    split: str,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """fid, kid and prdc of samples against the reference split, and after each the same of real images of `split`.

    Of real images there are as many as of samples, if the split has so many; of the reference split itself none.
    """
    device, n, reference = next(model.parameters()).device, asked["samples"], asked["reference"]
    data = real(loaders)
    started = time.perf_counter()
    force = options_in_force(model.sample, asked["sample"], "sample")
    y = labels(data, reference, n).to(device) if getattr(model, "conditional", False) else None
    evaluations: list[int | None] = []  # of the network, for each part that is drawn

    def seen() -> Iterator[Tensor]:
        for x in drawn(model, n, y=y, options=asked["sample"], seed=seed):
            evaluations.append(getattr(model, "evaluations", None))
            yield extract.embed(x)

    made = gathered(seen(), n)
    x = features(extract, data, reference, device)
    of_real = {**extract.told, "reference": told_of(data, reference), "reference_count": x.count}
    of_labels = {} if y is None else {"labels": f"those of images of {reference}"}
    own = {
        "method": "samples",
        "samples": n,
        **of_real,
        **of_labels,
        **told(model, force),
        **nfe(evaluations),
        **getattr(model, "protocol", {}),
    }
    common = {"kind": "estimate", "split": split}
    seconds = round(time.perf_counter() - started, 3)
    numbers = [
        {**common, **number, "count": n, "protocol": {**own, **number["protocol"]}, "seconds": seconds}
        for number in between(x, made, asked["metrics"], extract.suffix, seed)
    ]
    if split == reference:
        return numbers
    held_out = features(extract, data, split, device, some=n)
    return numbers + [
        {
            **common,
            **number,
            "name": f"{number['name']}_real",
            "count": held_out.count,
            "protocol": {"method": "real images", **of_real, **number["protocol"]},
        }
        for number in between(x, held_out, asked["metrics"], extract.suffix, seed)
    ]


def between(
    x: Features, y: Features, metrics: Iterable[str], suffix: str, seed: int
) -> Iterator[dict[str, Any]]:
    """The numbers of features y against those of the reference x; each with what its own protocol adds."""
    if "fid" in metrics:
        yield {"name": f"fid{suffix}", "value": frechet(x, y), "unit": "", "protocol": {}}
    if "kid" in metrics:
        chance.at(seed, "kid")
        value, error = kid(x.rows, y.rows, subsets=SUBSETS, size=SIZE)
        protocol = {"subsets": SUBSETS, "size": min(SIZE, len(x.rows), len(y.rows))}
        yield {"name": f"kid{suffix}", "value": value, "stderr": error, "unit": "", "protocol": protocol}
    if "prdc" in metrics:
        protocol = {"nearest": NEAREST, "of": [len(x.rows), len(y.rows)]}
        for name, value in prdc(x.rows, y.rows).items():
            yield {"name": f"{name}{suffix}", "value": value, "unit": "", "protocol": protocol}


def reconstructed(
    model: nn.Module,
    loaders: Loaders,
    asked: Mapping[str, Any],
    extract: Extractor | None,
    *,
    split: str,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """mse, psnr, ssim and rfid of a codec's decode(encode(x)) for the images of a split, or for `examples` of them.

    rfid compares with the same images themselves; rfid_real is that of as many images of the reference split.
    """
    device, some = next(model.parameters()).device, asked.get("examples")
    count = min(some or len(loaders.dataset(split)), len(loaders.dataset(split)))
    sums: dict[str, Tensor] = {}

    def backs() -> Iterator[Tensor]:
        for index, x in enumerate(images(loaders, split, device, some)):
            chance.at(seed, "reconstruction", split, index)
            with torch.inference_mode():
                back = model.decode(model.encode(x))
                for name, value in fidelity.sums(x, back, loaders.facts["levels"]).items():
                    sums[name] = sums[name] + value if name in sums else value
            yield extract.embed(back) if extract else back

    common: dict[str, Any] = {"unit": "", "split": split, "count": count}
    own = {"method": "decode(encode(x))", "images": count, **getattr(model, "protocol", {})}
    numbers = []
    if extract:
        made = gathered(backs(), count)
        x = features(extract, loaders, split, device, some=some)
        how = {**own, **extract.told, "reference": told_of(loaders, split)}
        common_of = {**common, "kind": "estimate"}
        name = f"rfid{extract.suffix}"
        numbers += [{**common_of, "name": name, "value": frechet(x, made), "protocol": how}]
        if split != asked["reference"]:
            other = features(extract, real(loaders), asked["reference"], device, some=count)
            how = {"method": "real images", **extract.told, "reference": told_of(loaders, split)}
            how |= {"instead": asked["reference"], "images": other.count}
            numbers += [{**common_of, "name": f"{name}_real", "value": frechet(x, other), "protocol": how}]
    else:
        for _ in backs():
            pass
    if "reconstruction" in asked["metrics"]:
        numbers += [
            {**common, "name": name, "value": value, "kind": "exact", "protocol": own}
            for name, value in fidelity.means(sums).items()
        ]
    return numbers
