"""The engine of linear recurrences, and the delta rule that runs in its manner: chunks equal loops."""

from functools import partial
from itertools import product

import pytest
import torch
from torch import nn

from zoo.nn.chunked import chunked, loop, recur
from zoo.nn.delta import delta, delta_loop


def inputs(T, kind="none", heads=4, d=5, e=3):
    """q, k, v, g, state for a run of T tokens, two examples, four heads of v and as many of q and k as asked."""
    torch.manual_seed(T)
    q, k = torch.randn(2, 2, heads, T, d, dtype=torch.float64)
    v, state = torch.randn(2, 4, T, e).double(), torch.randn(2, 4, d, e).double()
    shape = {"none": None, "head": (2, 4, T), "row": (2, 4, T, d)}[kind]
    # decays from hardly any to nearly all
    g = None if shape is None else -torch.exp(torch.randn(shape, dtype=torch.float64) * 3)
    return q, k, v, g, state


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("kind", ["none", "head", "row"])
def test_chunks_of_any_length_equal_the_loop(kind, heads):
    for T, chunk in product((1, 2, 13, 37, 64), (1, 3, 16, 32, 64)):
        q, k, v, g, state = inputs(T, kind, heads)
        for start in (None, state):
            fast, slow = chunked(q, k, v, g, start, chunk=chunk, group=3), loop(q, k, v, g, start)
            close(fast[0], slow[0])
            close(fast[1], slow[1])


def test_no_tokens_leave_the_state_as_it_is():
    q, k, v, _, state = inputs(0)
    o, after = chunked(q, k, v, None, state)
    assert o.shape == (2, 4, 0, 3)
    assert torch.equal(after, state)


@pytest.mark.parametrize("kind", ["none", "head", "row"])
def test_groups_of_chunks_have_the_loops_gradients(kind):
    leaves = [x.requires_grad_() for x in inputs(21, kind) if x is not None]
    q, k, v, *g, state = leaves
    g = g[0] if g else None
    weight = torch.randn(2, 4, 21, 3).double()
    found = []
    for run in (partial(chunked, chunk=4, group=2), loop):
        o, last = run(q, k, v, g, state)
        found.append(torch.autograd.grad((o * weight).sum() + last.square().sum(), leaves))
    for fast, slow in zip(*found, strict=True):
        close(fast, slow)


@pytest.mark.parametrize("kind", ["head", "row"])
def test_extreme_decays_are_finite_in_both_directions(kind):
    q, k, v, g, _ = (x.float() for x in inputs(70, kind))
    g[:, :, ::7], g[:, :, 3::5], g[:, :, 5] = -50.0, -1e-6, -1e4
    leaves = [x.requires_grad_() for x in (q, k, v, g)]
    o, _ = chunked(q, k, v, g)
    slow, _ = loop(*(x.detach().double() for x in leaves))
    torch.testing.assert_close(o.double(), slow, rtol=1e-3, atol=1e-3)  # exp(a difference of sums of 1e4)
    for gradient in torch.autograd.grad(o.sum(), leaves):
        assert gradient.isfinite().all()


def test_half_precision_sums_are_kept_in_float32():
    ones = torch.ones(1, 1, 2048, 1, dtype=torch.bfloat16)
    o, state = chunked(ones, ones, ones)
    assert o.dtype == state.dtype == torch.float32
    assert o[0, 0, -1, 0] == state[0, 0, 0, 0] == 2048


def kept_per_token(kind, group):
    """What autograd keeps for the backward pass of 4,096 tokens, inputs aside, in numbers for each."""
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x
        return x

    q, k, v, g = torch.randn(4, 1, 1, 4096, 8)
    decay = {"none": [], "head": [-g[..., 0].exp()], "row": [-g.exp()]}[kind]
    inputs = [x.clone().requires_grad_() for x in (q, k, v, *decay)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        o, _ = chunked(*inputs, group=group)
    assert o.requires_grad
    own = {x.untyped_storage().data_ptr() for x in inputs}
    return sum(x.untyped_storage().nbytes() for ptr, x in kept.items() if ptr not in own) / 4 / 4096


@pytest.mark.parametrize(("kind", "group"), [("none", 64), ("head", 64), ("row", 8)])
def test_scores_with_each_token_of_a_chunk_are_not_kept(kind, group):
    assert kept_per_token(kind, group) < 40  # where a chunk has 64


def test_rows_decays_in_one_group_are_kept():
    assert kept_per_token("row", 64) > 64


@pytest.mark.parametrize("T", [1, 7, 33])
@pytest.mark.parametrize("beta_max", [1, 2])
def test_the_delta_rule_in_chunks_equals_the_loop(T, beta_max):
    q, k, v, g, state = inputs(T, "head")
    k = nn.functional.normalize(k, dim=-1)
    beta = torch.rand(2, 4, T, dtype=torch.float64) * beta_max
    leaves = [x.requires_grad_() for x in (q, k, v, beta, g, state)]
    slow = delta_loop(*leaves)
    slopes = torch.autograd.grad(slow[0].square().sum() + slow[1].sum(), leaves)
    for chunk in (1, 3, 16, 64):
        fast = delta(*leaves, chunk=chunk, group=2)
        close(fast[0], slow[0])
        close(fast[1], slow[1])
        found = torch.autograd.grad(fast[0].square().sum() + fast[1].sum(), leaves)
        for a, b in zip(found, slopes, strict=True):
            close(a, b, 1e-9)


def test_what_the_delta_rule_wrote_last_is_what_it_reads():
    torch.manual_seed(0)
    k = torch.linalg.qr(torch.randn(8, 8).double())[0][[0, 1, 2, 0, 1, 0, 1, 2]]  # three orthogonal keys
    v = torch.randn(8, 3).double()
    k, v = k[None, None], v[None, None]
    ones, zeros = torch.ones(1, 1, 8).double(), torch.zeros(1, 1, 8).double()
    o, state = delta(k, k, v, ones, zeros, chunk=4)
    close(o, v)
    close(k[:, :, 5:] @ state, v[:, :, 5:])  # overwritten, not added to


def test_one_token_of_the_engine_is_the_recurrence_written_out():
    q, k, v, g, state = inputs(1, "head", heads=2)
    o, after = recur(q[:, :, 0], k[:, :, 0], v[:, :, 0], g[:, :, 0], state)
    for h in range(4):
        S = g[0, h, 0].exp() * state[0, h] + torch.outer(k[0, h // 2, 0], v[0, h, 0])
        close(after[0, h], S)
        close(o[0, h], q[0, h // 2, 0] @ S)


@torch.no_grad()
def test_the_delta_rule_equals_the_librarys_with_and_without_chunks():
    from transformers.models.qwen3_next import modeling_qwen3_next as library

    q, k, v, _, _ = inputs(37)
    k, q = nn.functional.normalize(k, dim=-1), q.float()
    beta, g = torch.rand(2, 2, 4, 37)
    g = -g
    theirs = library.torch_recurrent_gated_delta_rule(
        *(x.transpose(1, 2).float() for x in (q, k, v)),
        g=g.transpose(1, 2),
        beta=beta.transpose(1, 2),
        initial_state=None,
        output_final_state=True,
    )
    ours = delta(q.float() * 5**-0.5, k.float(), v.float(), beta, g, chunk=16)
    torch.testing.assert_close(ours[0].transpose(1, 2), theirs[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-5)
