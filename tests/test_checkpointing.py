"""Gradient checkpointing: the same losses and gradients, from less memory."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.models import Autoregressive
from zoo.nn import Attention, checkpoint_blocks

POLICIES = ["full", "sqrt", 2, "3", "selective"]


def model(depth: int = 9) -> Autoregressive:
    torch.manual_seed(0)
    mixer = partial(Attention, heads=2, dropout=0.2)
    return Autoregressive(shape=(12,), levels=5, dim=16, depth=depth, mixer=mixer, dropout=0.3)


def gradients(network: nn.Module) -> tuple[Tensor, list[Tensor]]:
    x = torch.randint(5, (4, 12), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    loss = network.loss(x)["loss"]
    network.zero_grad()
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in network.parameters()]


def kept(network: nn.Module) -> int:
    """Numbers that the forward pass keeps for the backward pass, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    places: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            places[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = network.loss(torch.zeros(4, 12, dtype=torch.long))["loss"]
    assert loss.requires_grad
    return sum(places.values())


class Counting(TorchDispatchMode):
    """Counts the operations that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.norms = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        self.norms += func is torch.ops.aten.native_layer_norm.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy", POLICIES)
def test_losses_and_gradients_are_the_same_with_dropout(policy):
    network = model()
    loss, plain = gradients(network)
    names = list(network.state_dict())
    checkpoint_blocks(network, policy)
    again, recomputed = gradients(network)
    assert torch.equal(loss, again)
    for a, b in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert list(network.state_dict()) == names


@pytest.mark.filterwarnings("ignore:A saved_tensors_hooks context:FutureWarning")
@pytest.mark.parametrize("policy", POLICIES)
def test_less_is_kept_for_the_backward_pass(policy):
    network = model()
    plain = kept(network)
    checkpoint_blocks(network, policy)
    assert kept(network) < plain * {2: 0.65, "3": 0.8}.get(policy, 0.4)
    checkpoint_blocks(network, "none")
    assert kept(network) == plain


def test_sqrt_keeps_fewer_inputs_than_full():
    network = model(16)
    sizes = {}
    for policy in ("full", "sqrt"):
        checkpoint_blocks(network, policy)
        sizes[policy] = kept(network)
    assert sizes["sqrt"] < sizes["full"]


def test_selective_runs_cheap_operations_again_but_no_matrix_product():
    counts = {}
    for policy in ("none", "selective", "full"):
        network = model(3)
        checkpoint_blocks(network, policy)
        with Counting() as counting:
            gradients(network)
        counts[policy] = counting
    assert counts["none"].products == counts["selective"].products < counts["full"].products
    assert counts["none"].norms < counts["selective"].norms


@pytest.mark.parametrize("policy", POLICIES)
def test_evaluation_and_sampling_are_left_alone(policy):
    network = model().eval()
    x = torch.randint(5, (2, 12))
    plain = network.log_prob(x)
    checkpoint_blocks(network, policy)
    assert torch.equal(network.log_prob(x), plain)
    assert network.sample(2).shape == (2, 12)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_copy_runs_on_its_own_weights(policy):
    network = model()
    checkpoint_blocks(network, policy)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        assert max(g.abs().max() for g in gradients(twin)[1][3:]) > 0
        network.load_state_dict(twin.state_dict())


def test_an_unknown_policy_is_refused_with_those_there_are():
    for policy in ("half", "0", -1):
        with pytest.raises(ValueError, match=r"gradient_checkpointing=.* none, full, sqrt, selective"):
            checkpoint_blocks(model(1), policy)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="Linear names no `blocks`"):
        checkpoint_blocks(nn.Linear(2, 2), "full")
    checkpoint_blocks(nn.Linear(2, 2), "none")


def test_segments_of_blocks_that_are_not_a_chain_are_refused():
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + block(x)
            return x

    network = Skipping()
    checkpoint_blocks(network, "sqrt")
    with pytest.raises(RuntimeError, match="gradient_checkpointing=full"):
        network(torch.randn(2, 3))
