"""The token mixers and position encodings of configs/, in networks small enough for tests."""

from functools import cache

import torch
from conftest import composed
from omegaconf import OmegaConf
from torch import nn

from zoo.config import build
from zoo.config.catalogue import options
from zoo.nn.fitting import kind

MIXERS = options("mixer")
POSITIONS = [name for name in options("position") if name != "auto"]
BIDIRECTIONAL = ("efficient", "nystrom")  # these have no causal form
T = 12  # tokens: images of 3 x 4
# what makes a mixer small, and puts the edges of its chunks and windows inside of 12 tokens
SMALL = {
    "flash": {"chunk": 5, "width": 8},
    "gau": {"width": 8},
    "lru": {"state": 6},
    "mamba": {"state": 3},
    "mamba2": {"state": 4, "head": 8},
    "nystrom": {"landmarks": 4, "kernel": 3},
    "performer": {"features": 8},
    "s4": {"state": 4, "length": 8},
    "s4d": {"state": 4},
    "strided": {"stride": 3},
    "transnormer": {"block": 5},
    "window": {"window": 4},
}
FACTS = ("dataset.shape=[1,3,4]", "dataset.levels=5", "dataset.classes=3")


@cache
def described(model: str, choice: str) -> dict:
    """The config's model, with one choice of mixer or position."""
    words = [f"model={model}", choice, "model.dim=16", "model.depth=2", *FACTS]
    return OmegaConf.to_container(composed("train", *words), resolve=True)["model"]


def description(mixer: str, position: str, causal: bool) -> dict:
    model = "transformer" if causal else "roformer"
    node = described(model, f"mixer={mixer}")
    return {
        **node,
        "mixer": node["mixer"] | SMALL.get(mixer, {}),
        "position": described(model, f"position={position}")["position"],
        "mlp": None,
    }


@cache
def classes(mixer: str, position: str) -> tuple:
    node = description(mixer, position, False)
    return kind(build(node["mixer"])), kind(build(node["position"]))


def network(mixer: str, position: str, causal: bool) -> nn.Module:
    """The model that a command line describes, with weights at which each part matters."""
    torch.manual_seed(0)
    model = build(description(mixer, position, causal), "model").double().eval()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.Linear | nn.Embedding) or "table" in name:
                nn.init.normal_(parameter, std=0.4)
    return model
