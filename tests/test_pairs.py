"""Every token mixer of configs/ with every position encoding: it does what it should, or is refused in a sentence."""

from functools import cache

import pytest
import torch
from conftest import composed
from omegaconf import OmegaConf
from torch import Tensor, nn

from zoo.config import build
from zoo.config.catalogue import options
from zoo.nn.backbone import kind
from zoo.nn.position import encodings, fits

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


def valid(causal: bool) -> list:
    mixers = [name for name in MIXERS if not (causal and name in BIDIRECTIONAL)]
    return [(m, p) for m in mixers for p in POSITIONS if fits(*reversed(classes(m, p)), causal)]


def invalid() -> list:
    everything = {(m, p, causal) for m in MIXERS for p in POSITIONS for causal in (True, False)}
    return sorted(everything - {(*pair, causal) for causal in (True, False) for pair in valid(causal)})


def data() -> Tensor:
    return torch.randint(5, (3, 1, 3, 4), generator=torch.Generator().manual_seed(1))


def slopes(model: nn.Module, t: int) -> Tensor:
    """How much the output at t depends on each token, (T,)."""
    x = torch.randn(1, T, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x.requires_grad_()
    weights = torch.linspace(-1, 2, 16, dtype=torch.float64)
    (slope,) = torch.autograd.grad((model.backbone(x)[0, t] * weights).sum(), x)
    return slope[0].abs().sum(-1)


def all_parameters_learn(model: nn.Module) -> None:
    model.loss(data(), torch.arange(3))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(("mixer", "position"), valid(causal=True))
def test_a_causal_pair_looks_back_goes_on_token_by_token_and_learns(mixer, position):
    model = network(mixer, position, causal=True)
    slope = slopes(model, 6)
    assert slope[7:].max() < 1e-12  # a convolution by FFT leaves rounding there
    assert slope[:7].max() > 1e-3
    steps_are_the_parallel_form(model)
    all_parameters_learn(model)


@torch.no_grad()
def steps_are_the_parallel_form(model: nn.Module) -> None:
    """A prompt, of unequal lengths too, and steps: the same as all at once, to 1e-9 in float64."""
    x = torch.randn(2, T, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole = model.backbone(x)
    y, state = model.backbone.prefill(x[:, :4])
    torch.testing.assert_close(y, whole[:, :4], rtol=1e-9, atol=1e-9)
    for t in range(4, T):
        y_t, state = model.backbone.step(x[:, t], state)
        torch.testing.assert_close(y_t, whole[:, t], rtol=1e-9, atol=1e-9)
    rows, lengths = torch.arange(2), torch.tensor([1, 4])
    _, state = model.backbone.prefill(x[:, :4], lengths)
    for t in range(4):
        y_t, state = model.backbone.step(x[rows, lengths + t], state)
        torch.testing.assert_close(y_t, whole[rows, lengths + t], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("mixer", "position"), valid(causal=False))
def test_a_bidirectional_pair_looks_both_ways_and_learns(mixer, position):
    model = network(mixer, position, causal=False)
    slope = slopes(model, 6)
    assert slope[:6].max() > 1e-3
    assert slope[7:].max() > 1e-3
    all_parameters_learn(model)


@pytest.mark.parametrize(("mixer", "position", "causal"), invalid())
def test_what_does_not_fit_is_refused_with_what_does(mixer, position, causal):
    with pytest.raises(ValueError) as refused:
        network(mixer, position, causal)
    said = str(refused.value)
    assert "\n" not in said
    if causal and mixer in BIDIRECTIONAL and fits(*reversed(classes(mixer, position)), causal):
        assert "cannot be causal" in said
        return
    own, encoding = classes(mixer, position)
    assert said.startswith(f"position={encoding.__name__} does not work with")
    assert own.__name__ in said
    named = [p for p in encodings() if p.__name__ in said.partition("; it takes ")[2].split(", ")]
    assert len(named) >= 3
    assert all(fits(p, own, causal) for p in named)
