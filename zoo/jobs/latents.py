"""The latents of a whole dataset, encoded once and kept: training a second stage then needs its first no more.

They are kept in the cache's folder under the name of what they were made from: the first stage's identity and
weights, and the data's fingerprint.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo import chance
from zoo.data.cache import digest, home, keep
from zoo.models import Latent
from zoo.training.facts import probes
from zoo.training.loaders import Loaders

AT_ONCE = 256  # examples encoded together


class Encoded:
    """A dataset whose batches also have z, the latents of x."""

    def __init__(self, dataset: Any, z: np.ndarray) -> None:
        self.dataset, self.z = dataset, z

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while a worker unpickles
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, indices: Tensor) -> dict[str, Tensor]:
        batch = self.dataset[indices]
        z = self.z[indices.cpu().numpy()]
        z = z if np.issubdtype(z.dtype, np.floating) else z.astype(np.int64)
        return {**batch, "z": torch.from_numpy(z).to(batch["x"].device)}


def encode_once(model: nn.Module, data: Loaders, examples: int, device: torch.device) -> None:
    """Give the batches of a two-stage training their latents, if that costs less than encoding them each time.

    It does from two epochs on; `examples` is how many the whole training sees. A dataset that draws its examples
    anew each time (crops, flips, binarization) is left as it is.
    """
    origin = getattr(getattr(model, "codec", None), "origin", None)
    if not isinstance(model, Latent) or origin is None or examples < 2 * len(data.dataset("train")):
        return
    for split in ("train", "val"):
        if data.has(split) and not changes(data.dataset(split)):
            z = latents(model, data.dataset(split), origin, data.fingerprints[split], device)
            data.replace(split, Encoded(data.dataset(split), z))


def latents(model: Latent, dataset: Any, origin: str, fingerprint: str, device: torch.device) -> np.ndarray:
    """The latents of each example (N, *latent), read from the cache, or encoded and written there."""
    levels = model.codec.latent.levels
    kind = np.float32 if levels is None else np.min_scalar_type(levels - 1)
    path = home() / "latents" / f"{digest(origin.encode(), fingerprint.encode())}.npy"
    shape = (len(dataset), *model.codec.latent.shape)
    if path.exists():
        known = np.load(path, mmap_mode="r", allow_pickle=False)
        if known.shape == shape and known.dtype == kind:
            return known
    before = next(model.codec.parameters()).device
    model.codec.to(device)
    z = np.empty(shape, kind)
    for indices in torch.arange(len(dataset)).split(AT_ONCE):
        x = dataset[indices]["x"].to(device)
        z[indices.numpy()] = model.codes(x).cpu().numpy()
    model.codec.to(before)
    keep(path, lambda file: np.save(file, z))
    return z


def changes(dataset: Any) -> bool:
    """Whether the same examples are others when they are seen again."""
    seen = []
    for place in range(2):
        chance.at("changes", place)
        seen.append(dataset[probes(dataset)]["x"])
    return not torch.equal(*seen)
