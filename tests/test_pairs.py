"""Every token mixer of configs/ with every position encoding: it does what it should, or is refused in a sentence."""

import copy
from functools import partial

import pytest
import torch
from mixers import BIDIRECTIONAL, MIXERS, POSITIONS, T, classes, network
from torch import Tensor, nn

from zoo.nn.position import Position, encodings, fits

RELATIVE = ("rope", "rope2d", "xpos", "alibi", "kerple", "t5", "shaw", "transformer_xl", "deberta")


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
    """A prompt, of unequal lengths too, and steps: the same as all at once, to 1e-9, and in float32 to 2e-4."""
    x = torch.randn(2, T, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole = model.backbone(x)
    single = copy.deepcopy(model.backbone).float()
    for backbone, tolerance in ((model.backbone, 1e-9), (single, 2e-4)):
        x = x.to(backbone.blocks[0].mixer_norm.weight.dtype)
        near = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance, check_dtype=False)
        near(backbone(x), whole)
        y, state = backbone.prefill(x[:, :4])
        near(y, whole[:, :4])
        for t in range(4, T):
            y_t, state = backbone.step(x[:, t], state)
            near(y_t, whole[:, t])
        rows, lengths = torch.arange(2), torch.tensor([1, 4])
        _, state = backbone.prefill(x[:, :4], lengths)
        for t in range(4):
            y_t, state = backbone.step(x[rows, lengths + t], state)
            near(y_t, whole[rows, lengths + t])


@pytest.mark.parametrize(("mixer", "position"), valid(causal=False))
def test_a_bidirectional_pair_looks_both_ways_and_learns(mixer, position):
    model = network(mixer, position, causal=False)
    slope = slopes(model, 6)
    assert slope[:6].max() > 1e-3
    assert slope[7:].max() > 1e-3
    all_parameters_learn(model)


def relative() -> list:
    """Valid pairs of which only distances may matter."""
    pairs = [(*pair, causal) for causal in (True, False) for pair in valid(causal)]
    on_average = [("performer", name) for name in ("rope", "rope2d", "xpos")]  # over draws of its features
    return [pair for pair in pairs if pair[1] in RELATIVE and pair[:2] not in on_average]


@pytest.mark.parametrize(("mixer", "position", "causal"), relative())
@torch.no_grad()
def test_only_distances_matter_whatever_mixes(mixer, position, causal):
    model = network(mixer, position, causal).backbone
    x = torch.randn(2, T, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    before = model(x)
    places = [module for module in model.modules() if isinstance(module, Position)]
    for place in places:
        move(place, 4 * 29)  # in a picture, 29 rows further down
    torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-9)


def move(place: Position, far: int) -> None:
    """Let an encoding take every token for one that stands `far` further on."""
    rotate, bias, scores, values = place.rotate, place.bias, place.scores, place.values
    place.rotate = lambda q, k, t: rotate(q, k, t + far)
    place.bias = lambda t_q, t_k: bias(t_q + far, t_k + far)
    place.scores = lambda q, k, t_q, t_k: scores(q, k, t_q + far, t_k + far)
    place.values = lambda weights, t_q, t_k: values(weights, t_q + far, t_k + far)


@torch.no_grad()
def test_a_place_that_is_told_is_moved_along():
    """Else the test above would hold for all: sinusoids in place of distances are seen."""
    model = network("softmax", "rope", True).backbone
    x = torch.randn(2, T, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    before = model(x)
    rotate = model.position.rotate
    model.position.rotate = lambda q, k, t: (rotate(q, k, t + 5)[0], rotate(q, k, t)[1])
    assert (model(x) - before).abs().max() > 1e-3


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
