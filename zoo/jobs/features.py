"""The networks by which a run's images are compared, found on this machine; and what they see in real images.

Features of real images are kept in the cache's folder under the name of what they were made from: the network and
the data's fingerprint.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.data.cache import digest, home, keep
from zoo.evaluation.features import Extractor, classifier, inception
from zoo.evaluation.quality import Features, gathered
from zoo.jobs.latents import changes
from zoo.loading import pretrained
from zoo.runs import runs
from zoo.training.loaders import Loaders

AT_ONCE = 256  # images seen together


class Places(NamedTuple):
    """Where networks may lie: the folder of data, and that of runs."""

    data_dir: str | Path
    runs: str | Path


def network(asked: Mapping[str, Any], loaders: Loaders, places: Places | None) -> Path:
    """The file of Inception's weights or the run of a classifier: as named, else one that is found.

    Inception in data_dir/inception goes first; else the most accurate finished classifier of this data in the
    folder of runs. FileNotFoundError where there is neither.
    """
    if asked.get("features"):
        return Path(asked["features"]).expanduser()
    name = loaders.facts["name"]
    if places:
        files = sorted((Path(places.data_dir).expanduser() / "inception").glob("*.pt"))
        if len(files) > 1:
            raise ValueError(f"{files[0].parent} has {len(files)} networks; name one by features=<file>")
        if files:
            return files[0]
        alike = real(loaders)
        if found := [run for run in runs(places.runs) if sees_the_same(run.results, alike)]:
            return max(found, key=lambda run: (accuracy(run.results), run.folder.name)).folder
    raise FileNotFoundError(
        f"no features for {name}: neither Inception's weights in data_dir/inception nor a classifier's run; "
        f"scripts/prepare.py features dataset={name} trains one, and features=<run or file> names either"
    )


def sees_the_same(results: Mapping[str, Any], loaders: Loaders) -> bool:
    """Whether results are those of a classifier of the same images."""
    model = results.get("config", {}).get("model") or {}
    if results.get("status") != "finished" or not str(model.get("_target_")).endswith(".ImageClassifier"):
        return False
    loaders.has("train")
    return results["data"].get("train") == loaders.fingerprints.get("train")


def accuracy(results: Mapping[str, Any]) -> float:
    """The accuracy that a run found."""
    return next((n["value"] for n in results.get("numbers", []) if n["name"] == "accuracy"), 0.0)


def extractor(
    asked: Mapping[str, Any], loaders: Loaders, places: Places | None, device: torch.device
) -> Extractor:
    """The network that sees, on a device."""
    path = network(asked, loaders, places)
    if path.is_dir():
        return classifier(pretrained(path, allow=asked.get("allow", ())).to(device), loaders.facts)
    return inception(path, loaders.facts["levels"], device)


def features(
    extract: Extractor, loaders: Loaders, split: str, device: torch.device, *, some: int | None = None
) -> Features:
    """The features of a split's images, or of some of them, evenly spread; read from the cache if they are there."""
    total = len(loaders.dataset(split))
    some = None if some is None or some >= total else some
    name = digest(extract.key.encode(), loaders.fingerprints[split].encode(), str(some).encode())
    path = home() / "features" / f"{name}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as known:
            parts = [torch.from_numpy(known[field]) for field in Features._fields[1:]]
        near = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        return Features(some or total, *(part.to(near) for part in parts))
    found = gathered((extract.embed(x) for x in images(loaders, split, device, some)), some or total)
    if not changes(loaders.dataset(split)):
        kept = {field: getattr(found, field).cpu().numpy() for field in Features._fields[1:]}
        keep(path, lambda file: np.savez(file, **kept))
    return found


def real(loaders: Loaders) -> Loaders:
    """The data that samples are compared with: without what training adds to images (crops, flips), as published
    distances are; and of pairs by reflow those that the first flow learned from, not what it made.
    """
    source = getattr(loaders.source, "keywords", {}).get("base") or loaders.source
    if getattr(source, "keywords", {}).get("augment") is not None:
        source = partial(source, augment=None)
    if source is loaders.source:
        return loaders
    facts = {**loaders.facts, "sizes": None}  # which are those of the pairs
    return Loaders(source, facts, batch_size=loaders.batch_size, seed=loaders.seed)


def images(loaders: Loaders, split: str, device: torch.device, some: int | None = None) -> Iterator[Tensor]:
    """The images of a split, each once, or some of them, evenly spread."""
    for batch in loaders.loader(split, AT_ONCE, some):
        yield batch["x"].to(device)


def told_of(loaders: Loaders, split: str) -> str:
    """A split as a protocol names it."""
    return f"{split}, with its chance (crops, flips ...)" if changes(loaders.dataset(split)) else split


def labels(loaders: Loaders, split: str, n: int) -> Tensor:
    """What belongs to n images, evenly spread over a split and again from its start if it has fewer: (n, ...)."""
    size = len(loaders.dataset(split))
    places = torch.arange(n) * size // n if n <= size else torch.arange(n) % size
    return torch.cat([loaders.dataset(split)[part]["y"] for part in places.split(AT_ONCE)])
