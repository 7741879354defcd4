"""Quantizers: their codes, what moves their codebooks, and where their gradients go."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from zoo.nn import (
    FSQ,
    LFQ,
    Codebook,
    EMACodebook,
    GumbelCodes,
    LinearCodebook,
    ResidualVQ,
    VectorQuantizer,
    rotated,
    straight_through,
)
from zoo.nn import codebook as codebooks
from zoo.nn.codebook import kmeans, nearest

DIM = 4
NEAREST = {
    "vq": VectorQuantizer,
    "ema": partial(VectorQuantizer, codebook=EMACodebook, kmeans=2),
    "cosine": partial(VectorQuantizer, cosine=True, kmeans=2),
    "rotation": partial(VectorQuantizer, through=rotated),
    "simvq": partial(VectorQuantizer, codebook=LinearCodebook),
}
ALL = {
    **{name: partial(make, levels=16) for name, make in NEAREST.items()},
    "residual": partial(ResidualVQ, depth=3, layer=partial(VectorQuantizer, levels=8, kmeans=3)),
    "fsq": partial(FSQ, sizes=[8, 5, 5, 6]),
    "fsq projected": partial(FSQ, sizes=[7, 4, 3]),
    "lfq": partial(LFQ, bits=4),
    "lfq projected": partial(LFQ, bits=7),
    "gumbel": partial(GumbelCodes, levels=16),
}


def made(name, *, dtype=torch.float64):
    torch.manual_seed(0)
    quantizer = ALL[name](DIM).to(dtype)
    for parameter in quantizer.parameters():
        nn.init.normal_(parameter)
    z = torch.randn(5, DIM, 3, 2, dtype=dtype)
    quantizer.prepare(z.movedim(1, -1).flatten(0, -2))
    return quantizer, z


@pytest.mark.parametrize("name", ALL)
def test_codes_stand_for_what_the_decoder_is_given(name):
    quantizer, z = made(name)
    for mode in (True, False):
        z_q, codes, terms = quantizer.train(mode)(z)
        assert z_q.shape == z.shape
        assert codes.shape == ((5, quantizer.depth, 3, 2) if quantizer.depth > 1 else (5, 3, 2))
        assert not codes.is_floating_point()
        assert 0 <= int(codes.min()) <= int(codes.max()) < quantizer.levels
        torch.testing.assert_close(quantizer.decode(codes), z_q)
        assert all(term.dim() == 0 and term.isfinite() for term in terms.values())


@pytest.mark.parametrize("name", NEAREST)
def test_a_nearest_code_quantizer_returns_its_own_entries(name):
    quantizer, _ = made(name)
    every = torch.arange(quantizer.levels).view(1, 4, 4)
    entries = quantizer.decode(every)
    z_q, codes, terms = quantizer(entries)
    assert torch.equal(codes, every)
    torch.testing.assert_close(z_q, entries)
    assert all(abs(term) < 1e-20 for term in terms.values())


@pytest.mark.parametrize("name", ["fsq", "fsq projected", "lfq", "lfq projected"])
def test_every_index_is_one_point_of_the_grid_and_back(name):
    quantizer, _ = made(name)
    every = torch.arange(quantizer.levels)
    values = quantizer.values(every)
    assert len(values.unique(dim=0)) == quantizer.levels
    if isinstance(quantizer, FSQ):
        back = quantizer.code(values * (quantizer.size // 2))
    else:
        back = ((values > 0) * quantizer.place).sum(-1)
    assert torch.equal(back, every)


def test_gumbel_and_residual_indices_come_back():
    quantizer, _ = made("gumbel")
    every = torch.arange(16).view(1, 4, 4)
    assert torch.equal(
        nearest(quantizer.decode(every).movedim(1, -1).flatten(0, 2), quantizer.entries), every.flatten()
    )
    quantizer, _ = made("residual")
    codes = torch.randint(8, (4, 3, 2, 2))
    for layer, code in zip(quantizer.layers, codes.unbind(1)):
        assert torch.equal(layer(layer.decode(code))[1], code)
    torch.testing.assert_close(
        quantizer.decode(codes), sum(q.decode(c) for q, c in zip(quantizer.layers, codes.unbind(1)))
    )


@pytest.mark.parametrize("levels", [33, 64, 192])
def test_nearest_by_chunks_is_the_least_distance(levels, monkeypatch):
    torch.manual_seed(0)
    z, entries = torch.randn(1000, 7, dtype=torch.float64), torch.randn(levels, 7, dtype=torch.float64)
    expected = torch.cdist(z, entries).argmin(1)
    assert torch.equal(nearest(z, entries), expected)
    monkeypatch.setattr(codebooks, "AT_ONCE", 100)
    assert torch.equal(nearest(z, entries), expected)


@pytest.mark.parametrize("levels", [33, 64, 192])
def test_of_equally_near_entries_the_first_is_taken(levels):
    distances = torch.randint(20, (500, levels), generator=torch.Generator().manual_seed(0)).float()
    first = [row.index(min(row)) for row in distances.tolist()]
    assert codebooks.least(distances).tolist() == first


def test_cosine_codes_have_length_one_and_the_largest_cosine():
    quantizer, z = made("cosine")
    nn.init.normal_(quantizer.codebook.weight)  # of any length
    rows = z.movedim(1, -1).flatten(0, 2)
    cosines = F.cosine_similarity(rows[:, None], quantizer.codebook.weight, dim=-1)
    z_q, codes, terms = quantizer(z)
    assert torch.equal(codes.flatten(), cosines.argmax(1))
    torch.testing.assert_close(z_q.norm(dim=1), torch.ones(5, 3, 2).double())
    apart = (F.normalize(z, dim=1) - z_q).square().mean()
    torch.testing.assert_close(terms["commitment"], 0.25 * apart)
    torch.testing.assert_close(terms["codebook"], apart)


def test_beta_is_on_the_term_that_reaches_the_encoder_only():
    for beta in (0.25, 3.0):
        torch.manual_seed(0)
        quantizer = VectorQuantizer(DIM, levels=8, beta=beta).double()
        nn.init.normal_(quantizer.codebook.weight)
        z = torch.randn(2, DIM, 2, 2, dtype=torch.float64, requires_grad=True)
        z_q, codes, terms = quantizer(z)
        e = quantizer.decode(codes).detach()
        entries = quantizer.codebook.weight
        g_z, g_e = torch.autograd.grad(
            terms["commitment"], (z, entries), allow_unused=True, retain_graph=True
        )
        torch.testing.assert_close(g_z, beta * 2 * (z.detach() - e) / z.numel())
        assert g_e is None
        g_z, g_e = torch.autograd.grad(terms["codebook"], (z, entries), allow_unused=True, retain_graph=True)
        assert g_z is None
        expected = torch.zeros_like(entries)
        rows = (2 * (e - z.detach()) / z.numel()).movedim(1, -1).flatten(0, 2)
        torch.testing.assert_close(g_e, expected.index_add(0, codes.flatten(), rows))
        g_z, g_e = torch.autograd.grad((z_q * 3).sum(), (z, entries), allow_unused=True)
        assert (g_z == 3).all()
        assert g_e is None


def test_moving_means_are_the_papers():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(DIM, levels=6, codebook=partial(EMACodebook, decay=0.9, eps=1e-3)).double()
    book = quantizer.codebook
    nn.init.normal_(book.weight)
    n, m, e = torch.ones(6).double(), book.weight.clone(), book.weight.clone()
    book.place(e, n)
    for step in range(1, 5):
        z = torch.randn(3, DIM, 2, 2, dtype=torch.float64)
        quantizer(z)
        torch.testing.assert_close(book.weight, e)  # a forward pass moves nothing
        rows = z.movedim(1, -1).flatten(0, 2)
        codes = torch.cdist(rows, e).argmin(1)
        one_hot = F.one_hot(codes, 6).double()
        n = 0.9 * n + 0.1 * one_hot.sum(0)
        m = 0.9 * m + 0.1 * one_hot.T @ rows
        e = m / ((n + 1e-3) / (n.sum() + 6 * 1e-3) * n.sum()).unsqueeze(1)
        quantizer.at(step)
        torch.testing.assert_close(book.weight, e)
        torch.testing.assert_close(book.count, n)


def test_moving_means_of_two_halves_are_those_of_the_whole(monkeypatch):
    """Micro-batches of one step are summed; so are the ranks, here by a sum over both in turn."""
    z = torch.randn(8, DIM, 2, 2, dtype=torch.float64)
    whole, halves, left, right = every = [made("ema")[0] for _ in range(4)]
    for quantizer in every:
        quantizer.at(0)
    for step in range(1, 4):
        whole(z)
        halves(z[:4])
        halves.at(step - 1)  # the same step still
        halves(z[4:])
        left(z[:4])
        right(z[4:])
        left_sums, right_sums = left.codebook.gathered, right.codebook.gathered
        for side in (left, right):
            total = iter([a + b for a, b in zip(left_sums, right_sums)])
            monkeypatch.setattr(codebooks, "summed", lambda x, total=total: next(total))
            side.at(step)
        monkeypatch.setattr(codebooks, "summed", lambda x: x)
        whole.at(step)
        halves.at(step)
        for other in (halves, left, right):
            torch.testing.assert_close(other.codebook.weight, whole.codebook.weight)
            torch.testing.assert_close(other.codebook.count, whole.codebook.count)


def test_two_processes_have_one_codebook(tmp_path):
    """The sums of two ranks make the codebook that one process makes of both their batches; k-means too."""
    torch.multiprocessing.spawn(one_rank, args=(str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    quantizer, z = made("ema", dtype=torch.float32)
    quantizer.codebook.revive = REVIVE
    quantizer(z)
    quantizer.at(1)
    assert torch.equal(one["codebook.weight"], two["codebook.weight"])
    torch.testing.assert_close(one["codebook.count"], quantizer.codebook.count)
    alive = quantizer.codebook.count > REVIVE  # which rows a dead entry may become is rank 0's to say
    assert 3 < alive.sum() < 13
    torch.testing.assert_close(one["codebook.weight"][alive], quantizer.codebook.weight[alive])
    rows = z[2:].movedim(1, -1).flatten(0, 2)
    assert (torch.cdist(one["codebook.weight"][~alive], rows).amin(1) == 0).all()


REVIVE = 1.5


def one_rank(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    quantizer, z = made("ema", dtype=torch.float32)
    quantizer.codebook.revive = REVIVE
    quantizer(z[:2] if rank else z[2:])
    quantizer.at(1)
    torch.save(quantizer.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_only_training_moves_moving_means():
    quantizer, z = made("ema")
    before = quantizer.codebook.weight.clone()
    quantizer.eval()(z)
    with torch.no_grad():
        quantizer.train()(z)
    quantizer.at(1)
    assert torch.equal(quantizer.codebook.weight, before)


def test_loaded_entries_are_not_moved_by_what_was_gathered_before():
    quantizer, z = made("ema")
    quantizer.at(0)
    quantizer(z)
    stored = {name: 2 * value for name, value in quantizer.state_dict().items()}
    quantizer.load_state_dict(stored)
    quantizer.at(7)
    assert all(torch.equal(value, stored[name]) for name, value in quantizer.state_dict().items())


def test_a_repeated_forward_pass_is_counted_once():
    sums, grads = [], []
    for again in (False, True):
        quantizer, z = made("ema")
        z = z.requires_grad_()
        z_q, _, terms = checkpoint(quantizer, z, use_reentrant=False) if again else quantizer(z)
        (z_q.square().sum() + terms["commitment"]).backward()
        sums.append(torch.cat([part.flatten() for part in quantizer.codebook.gathered]))
        grads.append(z.grad)
    assert torch.equal(*sums)
    assert torch.equal(*grads)
    assert quantizer.codebook.gathered[0].sum() == 5 * 3 * 2


def test_dead_entries_become_vectors_of_the_step():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(2, levels=8, codebook=partial(EMACodebook, revive=0.7, decay=0.5))
    far = torch.full((8, 2), 100.0)
    far[0] = 0.0
    quantizer.codebook.place(far, torch.ones(8))
    z = torch.randn(4, 2, 3, 3)
    quantizer(z)
    quantizer.at(1)
    book, rows = quantizer.codebook, z.movedim(1, -1).flatten(0, 2)
    assert (torch.cdist(book.weight[1:], rows).amin(1) == 0).all()
    torch.testing.assert_close(book.total, book.weight * book.count.unsqueeze(1), rtol=1e-3, atol=1e-3)
    quantizer(z)
    quantizer.at(2)
    assert (book.weight.abs() < 10).all()  # nothing draws them back


def test_kmeans_finds_the_clusters():
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    z = (centres.repeat_interleave(50, 0) + 0.1 * torch.randn(150, 2))[torch.randperm(150)]
    best = min((kmeans(z, 3, 10) for _ in range(8)), key=lambda found: torch.cdist(z, found[0]).amin(1).sum())
    assert torch.cdist(centres, best[0]).amin(1).max() < 0.1
    assert best[1].tolist() == [50, 50, 50]


def test_kmeans_never_makes_the_error_larger_and_leaves_empty_means_where_they_are():
    torch.manual_seed(0)
    z = torch.randn(200, 3)
    errors = []
    for iterations in range(6):
        torch.manual_seed(1)
        means, counts = kmeans(z, 12, iterations)
        errors.append(float(torch.cdist(z, means).amin(1).square().sum()))
    assert errors == sorted(errors, reverse=True)
    assert counts.sum() == 200
    means, counts = kmeans(torch.zeros(5, 2), 4, 3)
    assert torch.equal(means, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="at least one row"):
        kmeans(torch.zeros(0, 2), 4)


def test_few_rows_leave_the_other_entries_as_they_were():
    quantizer = VectorQuantizer(2, levels=6, codebook=EMACodebook, kmeans=3)
    before = quantizer.codebook.weight.clone()
    quantizer.prepare(torch.tensor([[3.0, 3.0], [-3.0, 3.0]]))
    assert torch.equal(quantizer.codebook.weight[2:], before[2:])
    assert quantizer.codebook.weight[:2].abs().tolist() == [[3, 3], [3, 3]]


def test_the_rotation_has_the_papers_gradient():
    torch.manual_seed(0)
    z = torch.randn(6, DIM, dtype=torch.float64, requires_grad=True)
    e = torch.randn(6, DIM, dtype=torch.float64, requires_grad=True)
    g = torch.randn(6, DIM, dtype=torch.float64)
    q = rotated(z, e)
    torch.testing.assert_close(q, e)
    grad, none = torch.autograd.grad(q, (z, e), g, allow_unused=True)
    assert none is None
    for i in range(6):
        unit_z, unit_e = (v[i].detach() / v[i].detach().norm() for v in (z, e))
        r = (unit_z + unit_e) / (unit_z + unit_e).norm()
        R = torch.eye(DIM).double() - 2 * torch.outer(r, r) + 2 * torch.outer(unit_e, unit_z)
        torch.testing.assert_close(R @ R.T, torch.eye(DIM).double())
        torch.testing.assert_close(R.det(), torch.tensor(1.0).double())
        stretch = e[i].norm() / z[i].norm()
        torch.testing.assert_close(grad[i], stretch * R.T @ g[i])
        before, after = F.cosine_similarity(g[i], e[i], 0), F.cosine_similarity(grad[i], z[i], 0)
        torch.testing.assert_close(before, after)


def test_the_rotation_goes_straight_through_where_it_is_not_defined():
    z = torch.tensor([[0.0, 0.0], [1.0, 2.0], [1.0, 0.0]], requires_grad=True)
    e = torch.tensor([[1.0, 1.0], [-1.0, -2.0], [0.0, 0.0]])
    q = rotated(z, e)
    assert torch.equal(q, e)
    (grad,) = torch.autograd.grad(q.sum(), z)
    assert torch.equal(grad, torch.ones(3, 2))
    assert torch.equal(straight_through(z, e), e)


def test_one_step_of_simvq_moves_entries_that_nothing_chose():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(DIM, levels=64, codebook=LinearCodebook)
    before, frozen = quantizer.entries().detach(), quantizer.codebook.frozen.clone()
    z_q, codes, terms = quantizer(torch.randn(1, DIM, 2, 1))
    (z_q.sum() + sum(terms.values())).backward()
    torch.optim.SGD(quantizer.parameters(), lr=0.1).step()
    moved = (quantizer.entries() - before).abs().sum(1) > 0
    assert moved.all()
    assert len(codes.unique()) <= 2
    assert torch.equal(quantizer.codebook.frozen, frozen)
    with pytest.raises(ValueError, match="kmeans=0"):
        VectorQuantizer(DIM, codebook=LinearCodebook, kmeans=1)


@pytest.mark.parametrize("L", [3, 4, 5, 6, 7, 8])
def test_fsq_takes_exactly_its_levels_evenly(L):
    quantizer = FSQ(1, sizes=[L])
    z = torch.linspace(-20, 20, 4001).view(1, 1, 1, -1)
    z_q, codes, terms = quantizer(z)
    assert codes.unique().tolist() == list(range(L))
    assert (codes.diff() >= 0).all()
    steps = z_q.unique().diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / (L // 2)))
    assert not terms
    assert quantizer(torch.zeros(1, 1, 1, 1))[0] == 0.0


def test_fsq_gradient_is_that_of_its_bound():
    quantizer = FSQ(2, sizes=[8, 5]).double()
    z = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(quantizer(z)[0].sum(), z)
    shift, half, width = (v.view(1, 2, 1, 1) for v in (quantizer.shift, quantizer.reach, quantizer.size // 2))
    torch.testing.assert_close(grad, (1 - (z + shift).tanh().square()) * half / width)
    assert FSQ(8, sizes=[8, 5, 5, 5]).levels == 1000
    with pytest.raises(ValueError, match="at least 3"):
        FSQ(1, sizes=[2])


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_lfq_entropies_are_those_over_all_codes_written_out(bits):
    torch.manual_seed(0)
    quantizer = LFQ(bits, bits=bits, sharpness=0.3)
    z = (
        torch.randn(50, bits, dtype=torch.float64) @ torch.randn(bits, bits).double()
    )  # bits that depend on each other
    codes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * bits).view(-1, bits).double()
    p = (2 * 0.3 * z @ codes.T).softmax(1)
    each, mean = quantizer.entropies(z)
    torch.testing.assert_close(each, torch.special.entr(p).sum(1).mean())
    torch.testing.assert_close(mean, torch.special.entr(p.mean(0)).sum())


def test_lfq_entropy_over_whole_codes_sees_that_bits_agree():
    z = torch.tensor([[1.0, 1, 1, 1, 1, 1], [-1.0, -1, -1, -1, -1, -1]])
    each, mean = LFQ(6, bits=6).entropies(z)
    assert each < 1e-6
    assert mean == pytest.approx(math.log(2))  # bit by bit it would be 6 log 2
    assert LFQ(2, bits=2)(torch.zeros(1, 2, 1, 1))[1] == 3


def test_lfq_terms_want_sure_bits_and_all_codes():
    torch.manual_seed(0)
    quantizer = LFQ(3, bits=3, entropy=0.5, gamma=2.0, sharpness=0.3, beta=0.7).double()
    z = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    z_q, _, terms = quantizer(z)
    each, mean = quantizer.entropies(z.movedim(1, -1).flatten(0, 2))
    torch.testing.assert_close(terms["entropy"], 0.5 * (each - 2.0 * mean))
    torch.testing.assert_close(terms["commitment"], 0.7 * (z - z.sign()).square().mean())
    assert torch.equal(z_q, z.sign())
    (grad,) = torch.autograd.grad(z_q.sum(), z)
    assert (grad == 1).all()


def test_hard_gumbel_codes_have_the_gradient_of_relaxed_ones():
    z, towards, found = torch.randn(6, 2, 3, 1).double(), torch.randn(6, 2, 3, 1).double(), []
    for hard in (False, True):
        torch.manual_seed(0)
        quantizer = GumbelCodes(2, levels=5, hard=hard, start=0.7).double()
        z_q, codes, _ = quantizer(z)
        found.append(torch.autograd.grad((z_q * towards).sum(), [quantizer.logits.weight, quantizer.entries]))
    torch.testing.assert_close(found[0][0], found[1][0])
    rows = towards.movedim(1, -1).flatten(0, 2)  # a drawn entry hears its own place alone
    torch.testing.assert_close(found[1][1], torch.zeros(5, 2).double().index_add(0, codes.flatten(), rows))


def test_gumbel_codes_are_drawn_as_often_as_they_are_probable():
    torch.manual_seed(0)
    quantizer = GumbelCodes(2, levels=5)
    z = torch.randn(1, 2, 1, 1)
    p = quantizer.logits(z.flatten()).softmax(0)
    codes = quantizer(z.expand(20000, 2, 1, 1))[1]
    frequencies = torch.bincount(codes.flatten(), minlength=5) / 20000
    torch.testing.assert_close(frequencies, p, atol=0.015, rtol=0)
    assert quantizer.eval()(z)[1] == p.argmax()


def test_the_gumbel_softmax_becomes_one_hot_as_tau_falls():
    z = torch.randn(20, 2, 1, 1)
    distances = []
    for tau in (1.0, 0.1, 0.001):
        torch.manual_seed(0)
        quantizer = GumbelCodes(2, levels=5, hard=False, start=tau)
        torch.manual_seed(1)
        z_q, codes, _ = quantizer(z)
        distances.append((z_q - quantizer.decode(codes)).norm(dim=1).mean().item())
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 1e-3


def test_gumbel_temperature_falls_with_the_step_and_its_kl_is_closed():
    quantizer = GumbelCodes(2, levels=8, start=1.0, end=0.25, anneal=100, kl=1.0)
    taus = []
    for step in (0, 50, 100, 1000):
        quantizer.at(step)
        taus.append(quantizer.tau)
    assert taus == pytest.approx([1.0, 0.5, 0.25, 0.25])
    nn.init.zeros_(quantizer.logits.weight)
    nn.init.zeros_(quantizer.logits.bias)
    assert abs(quantizer(torch.randn(3, 2, 1, 1))[2]["kl"]) < 1e-6  # uniform
    quantizer.logits.bias.data[0] = 100.0
    assert quantizer(torch.randn(3, 2, 1, 1))[2]["kl"].item() == pytest.approx(math.log(8))


def test_residual_layers_leave_less_and_less():
    torch.manual_seed(0)
    z = torch.randn(20, 2, 4, 4)
    quantizer = ResidualVQ(2, depth=4, layer=partial(VectorQuantizer, levels=16, kmeans=10))
    quantizer.prepare(z.movedim(1, -1).flatten(0, 2))
    _, codes, terms = quantizer(z)
    errors = [
        float((z - sum(q.decode(c) for q, c in zip(quantizer.layers[:n], codes.unbind(1)))).square().mean())
        for n in range(1, 5)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * errors[0]
    assert terms["commitment"].item() == pytest.approx(0.25 * sum(errors), rel=1e-4)
    z.requires_grad_()
    (grad,) = torch.autograd.grad(quantizer(z)[0].sum(), z)
    assert (grad == 1).all()  # once, not once a layer
    with pytest.raises(ValueError, match="cosine"):
        ResidualVQ(2, layer=partial(VectorQuantizer, cosine=True))


def test_residual_dropout_keeps_the_first_codes():
    torch.manual_seed(0)
    quantizer = ResidualVQ(2, depth=3, layer=partial(VectorQuantizer, levels=4), dropout=1.0)
    z_q, codes, _ = quantizer(torch.randn(50, 2, 1, 1))
    parts = [q.decode(c) for q, c in zip(quantizer.layers, codes.unbind(1))]
    is_one = (z_q - parts[0]).flatten(1).abs().amax(1) < 1e-6
    is_two = (z_q - parts[0] - parts[1]).flatten(1).abs().amax(1) < 1e-6
    assert (is_one | is_two).all()
    assert 10 < is_one.sum() < 40
    z_q, codes, _ = quantizer.eval()(torch.randn(5, 2, 1, 1))
    torch.testing.assert_close(z_q, quantizer.decode(codes))


@pytest.mark.parametrize("name", ALL)
def test_half_precision_takes_the_codes_of_whole(name):
    quantizer, z = made(name, dtype=torch.float32)
    z = z.bfloat16()
    quantizer.eval()
    codes = quantizer(z.float())[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z_q, half, terms = quantizer(z)
        entries = quantizer.decode(half)
    if "projected" not in name:
        assert torch.equal(entries, quantizer.decode(half))
    assert z_q.dtype == torch.bfloat16
    assert all(term.dtype == torch.float32 for term in terms.values())
    if name not in ("gumbel", "fsq projected", "lfq projected"):  # these have a linear map before their codes
        assert torch.equal(half, codes)
    elsewhere = (half != codes).double().mean()
    assert elsewhere < 0.1


def test_moving_means_are_refused_in_half_precision():
    """4,096 rows of one code would count as 256, the last whole number below which bfloat16 tells two apart."""
    quantizer, z = made("ema", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"moving means in bfloat16 .* trainer\.precision=bf16-mixed"):
        quantizer(z)
    assert quantizer.eval()(z)[0].isfinite().all()


def test_use_and_perplexity_are_over_the_whole_epoch():
    quantizer = VectorQuantizer(2, levels=8)
    first = quantizer.statistics(torch.tensor([[[0, 0], [1, 1]]]))
    second = quantizer.statistics(torch.tensor([[[2, 2], [3, 3]]]))
    told = quantizer.summarize({"codes": first["codes"] + second["codes"]})
    assert told == {"codebook_use": 0.5, "codebook_perplexity": pytest.approx(4.0)}
    assert quantizer.summarize(first)["codebook_perplexity"] == pytest.approx(2.0)
    assert quantizer.summarize({"codes": torch.ones(1, 8)})["codebook_perplexity"] == pytest.approx(8.0)


def test_a_plain_codebook_begins_small_and_even():
    assert Codebook(50, 3).weight.abs().max() <= 1 / 50
    with pytest.raises(ValueError, match=r"decay=1\.0"):
        EMACodebook(4, 2, decay=1.0)
