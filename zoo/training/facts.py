"""Datasets held to what their YAML states, indexed by batches whoever wrote them, known by their content."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.types import PAD

PROBES = 32  # examples of a split that are looked at before training


def probes(dataset: Any) -> Tensor:
    """Indices of up to 32 examples, evenly spread over a split, the first and the last among them."""
    n = len(dataset)
    return torch.linspace(0, n - 1, min(n, PROBES)).round().long().clamp(max=n - 1)


class Gathered:
    """A map-style dataset of single examples, `dataset[3]`, indexed a batch at a time.

    An example is {"x": ..., "y": ...}, (x, y) or x; x and y are tensors, arrays or numbers of one shape.
    Raises ValueError where examples do not stack.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while a worker unpickles
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, indices: Tensor) -> dict[str, Tensor]:
        examples = [named(self.dataset[i]) for i in indices.tolist()]
        return {name: self._stacked(name, [example[name] for example in examples]) for name in examples[0]}

    def _stacked(self, name: str, values: list[Any]) -> Tensor:
        who = f"{type(self.dataset).__name__}: {name}"
        try:
            tensors = [torch.as_tensor(value) for value in values]
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"{who} is of type {type(values[0]).__name__}, which is no tensor, array or number; "
                f"add a transform"
            ) from None
        shapes = sorted({tuple(t.shape) for t in tensors})
        if len(shapes) > 1:
            raise ValueError(
                f"{who} has examples of shapes {shapes[0]} and {shapes[1]}, which do not stack; pad or crop"
            )
        return torch.stack(tensors)


def named(example: Any) -> dict[str, Any]:
    """An example of anyone's dataset by the names x and y."""
    if isinstance(example, Mapping):
        return {name: example[name] for name in ("x", "y") if name in example}
    if isinstance(example, tuple | list):
        return dict(zip(("x", "y"), example))
    return {"x": example}


def batched(dataset: Any) -> bool:
    """Whether a dataset can be indexed by a batch of indices; found out once, by asking for two examples."""
    if len(dataset) == 0:
        raise ValueError(f"{type(dataset).__name__} has no examples")
    indices = torch.tensor([0, len(dataset) - 1])
    try:
        batch = dataset[indices]
    except (
        Exception
    ):  # whatever an index that is no int makes of a stranger's code; dataset[0] will tell real faults
        return False
    return isinstance(batch, dict) and isinstance(batch.get("x"), Tensor) and batch["x"].shape[:1] == (2,)


def check(dataset: Any, split: str, facts: Mapping[str, Any]) -> None:
    """Hold a split to the facts: size, shape, levels, dtype, labels, targets, sources. ValueError names both sides."""
    says = f"{facts.get('name', 'the config')} says"
    size = (facts.get("sizes") or {}).get(split)
    if size is not None and size != len(dataset):
        raise ValueError(
            f"{says} {split} has {size} examples, the data have {len(dataset)}; "
            f"set dataset.sizes.{split}={len(dataset)} if that is meant"
        )
    batch = dataset[probes(dataset)]
    if "x" not in batch:
        raise ValueError(f"{type(dataset).__name__} gives {sorted(batch)}, without x, the data")
    x, y = batch["x"], batch.get("y")
    shape = tuple(x.shape[1:])
    if facts.get("shape") is not None and tuple(facts["shape"]) != shape:
        raise ValueError(
            f"{says} shape {tuple(facts['shape'])}, the data have {shape}; set dataset.shape={list(shape)}"
        )
    if "levels" in facts:
        check_levels(x, facts["levels"], says)
    if facts.get("classes") is not None:
        check_labels(dataset, y, facts["classes"], f"{says} {split} has {facts['classes']} classes")
    if facts.get("targets"):
        check_symbols(y, shape, facts.get("levels"), f"{says} y has a target, or PAD, for each token")
    if facts.get("y") is not None:
        space = facts["y"]
        check_symbols(y, tuple(space["shape"]), space["levels"], f"{says} y is what x follows from")


def check_levels(x: Tensor, levels: int | None, says: str) -> None:
    """x is integers in [0, levels) or PAD, or real numbers where levels is None; ValueError otherwise."""
    if levels is None:
        if not torch.is_floating_point(x):
            raise ValueError(f"{says} real numbers (levels null), the data are {x.dtype}; set dataset.levels")
        if not x.isfinite().all():
            raise ValueError(f"{says} real numbers, the data have NaN or infinity among their first examples")
        return
    if torch.is_floating_point(x) or x.is_complex():
        raise ValueError(
            f"{says} levels {levels}, the data are {x.dtype}; give integers, or dataset.levels=null"
        )
    low, high = int(x.min()), int(x.max())
    if high >= levels or low < PAD:
        raise ValueError(f"{says} levels {levels} (0 to {levels - 1}), the data go from {low} to {high}")


def check_labels(dataset: Any, y: Tensor | None, classes: int, says: str) -> None:
    """Labels are integers in [0, classes), all of them where the dataset has them as `y`; else ValueError."""
    if y is None:
        raise ValueError(f"{says}, the data have no y; set dataset.classes=null")
    known = getattr(dataset, "y", None)
    if isinstance(known, Tensor) and known.dtype == y.dtype:
        if len(known) != len(dataset):
            raise ValueError(f"{says}, but {len(known)} labels for {len(dataset)} examples")
        y = known
    if torch.is_floating_point(y) or y.dim() != 1:
        raise ValueError(
            f"{says}, the labels are {y.dtype} of shape {tuple(y.shape[1:])}; give one integer each"
        )
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise ValueError(f"{says} (0 to {classes - 1}), the labels go from {low} to {high}")


def check_symbols(y: Tensor | None, shape: tuple[int, ...], levels: int | None, says: str) -> None:
    """y is integers in [0, levels) or PAD, (B, *shape); ValueError otherwise."""
    says = f"{says}, of shape {shape} and levels {levels}"
    if y is None:
        raise ValueError(f"{says}; the data have no y")
    if torch.is_floating_point(y) or tuple(y.shape[1:]) != shape:
        raise ValueError(f"{says}; the data have y of {y.dtype} and shape {tuple(y.shape[1:])}")
    low, high = int(y.min()), int(y.max())
    if low < PAD or (levels is not None and high >= levels):
        raise ValueError(f"{says} (0 to {(levels or 0) - 1}); the y of the data goes from {low} to {high}")


def fingerprint(dataset: Any) -> str:
    """The dataset's own `fingerprint`; for a stranger a hash of its size and of examples spread over it."""
    own = getattr(dataset, "fingerprint", None)
    if own is not None:
        return str(own() if callable(own) else own)
    batch = dataset[probes(dataset)]
    content = hashlib.blake2b(str(len(dataset)).encode(), digest_size=16)
    for name in sorted(batch):
        value = batch[name].contiguous()
        content.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        content.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return content.hexdigest()
