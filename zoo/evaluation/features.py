"""The networks by whose features images are compared: the published Inception, or a small classifier of the zoo.

Images are integers in [0, levels), (B, C, H, W); features are (B, D).
"""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

INCEPTION = 2048  # features of Inception before its last layer
LEAST = 299  # the side that Inception looks at


class Extractor(NamedTuple):
    """What sees: `embed` gives features; `told` stands in the protocol; `key` tells one network from all others.

    suffix   what it adds to the names of its numbers: only published Inception's are called fid, kid ...
    """

    suffix: str
    told: dict[str, Any]
    key: str
    embed: Callable[[Tensor], Tensor]


def inception(path: Path, levels: int, device: torch.device) -> Extractor:
    """Inception as FID has it (the 2015 graph), from a TorchScript file that scales and resizes by itself.

    The file is the one of StyleGAN and clean-fid, inception-2015-12-05.pt: called with bytes (B, 3, H, W) and
    return_features=True it gives (B, 2048). Grey images count as colours.

    FileNotFoundError, and ValueError for a file that is no such network.
    """
    if not path.is_file():
        raise FileNotFoundError(f"features={path}: there is no such file, and no run's folder")
    known = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        with warnings.catch_warnings():  # TorchScript is deprecated, and the published file is one
            warnings.simplefilter("ignore", FutureWarning)
            network = torch.jit.load(path, map_location=device).eval()
        probe = see(network, torch.zeros(2, 3, 32, 32, dtype=torch.uint8, device=device))
    except RuntimeError as error:
        raise ValueError(
            f"{path} is no TorchScript of Inception that takes bytes and return_features=True: "
            f"{str(error).strip().splitlines()[-1]}"
        ) from None
    if tuple(probe.shape) != (2, INCEPTION):
        raise ValueError(
            f"{path} gives features of shape {tuple(probe.shape[1:])}, and those of FID's Inception are {INCEPTION}"
        )

    def embed(x: Tensor) -> Tensor:
        whole = (x.to(device).float() * (255 / (levels - 1))).round().to(torch.uint8)
        return see(network, whole.expand(-1, 3, -1, -1))

    told = {
        "features": f"Inception ({path.name}, sha256 {known[:12]})",
        "resizing": f"to {LEAST} x {LEAST}, the file's own",
    }
    return Extractor("", told, known, embed)


@torch.inference_mode()
def see(network: Callable[..., Tensor], images: Tensor) -> Tensor:
    """Features of bytes (B, 3, H, W)."""
    return network(images, return_features=True)


def classifier(model: Any, facts: Any) -> Extractor:
    """A small classifier of the same images, as zoo.pretrained gives it; its numbers end in _zoo.

    ValueError for a model without features (`embed`), or of other images.
    """
    if not hasattr(model, "embed"):
        raise ValueError(
            f"features={getattr(model, 'origin', '')}: {type(model).__name__} has no features; "
            "scripts/prepare.py features dataset=<one> trains a classifier that has"
        )
    if (tuple(model.shape), model.levels) != (tuple(facts["shape"]), facts["levels"]):
        raise ValueError(
            f"the classifier saw images of shape={list(model.shape)} with levels={model.levels}, and "
            f"{facts['name']} has shape={list(facts['shape'])} with levels={facts['levels']}"
        )

    @torch.inference_mode()
    def embed(x: Tensor) -> Tensor:
        return model.embed(x)

    return Extractor("_zoo", {"features": model.told, "resizing": "none"}, model.origin, embed)
