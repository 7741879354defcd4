"""Autoregressive models of images: their probabilities, what each element may know, and how they are drawn."""

import math
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.functional import jacobian

from zoo.models import FVSBN, MADE, NADE, GatedPixelCNN, PixelCNN, PixelCNNPP
from zoo.models.fully_visible import recomputed
from zoo.models.gated_pixelcnn import GatedLayer
from zoo.models.nade import Hidden
from zoo.models.tokens import arranged, sequence
from zoo.nn import Bernoulli, DiscretizedGaussian, DiscretizedLogisticMixture, checkpoint_blocks
from zoo.nn.shifted_conv import GatedResidual
from zoo.types import Density, Sampler, Scheduled, Space, Unfit, can

net = {"dim": 4, "depth": 2, "head": 6}
scales = {"dim": 3, "depth": 1, "components": 2}
VECTORS = {
    "fvsbn": partial(FVSBN),
    "nade": partial(NADE, hidden=5, random_order=False),
    "nade in a random order": partial(NADE, hidden=5),
    "made": partial(MADE, hidden=[12, 16]),
    "made without a hidden layer": partial(MADE, hidden=[]),
    "made in a random order": partial(MADE, hidden=[20], random_order=True, direct=True),
    "made of logistics": partial(MADE, hidden=[12], likelihood=DiscretizedLogisticMixture),
    "made of gaussians": partial(MADE, hidden=[12], likelihood=DiscretizedGaussian),
}
MIXED = {
    "made of masks": partial(MADE, hidden=[20], masks=3, direct=True),
    "made of orders": partial(MADE, hidden=[20], masks=3, random_order=True),
}
MAPS = {
    "pixelcnn": partial(PixelCNN, **net),
    "pixelcnn of codes": partial(PixelCNN, **net, embed=3),
    "gated": partial(GatedPixelCNN, **net),
    "gated of codes": partial(GatedPixelCNN, **net, embed=3),
    "gated with labels": partial(GatedPixelCNN, **net, classes=3, conditional=True),
}
SCALES = {
    "pixelcnn++": partial(PixelCNNPP, **scales),
    "pixelcnn++ with labels": partial(PixelCNNPP, **scales, classes=3, conditional=True),
}
ALL = {**VECTORS, **MIXED, **MAPS, **SCALES}
LABELLED = [name for name in ALL if "labels" in name]


def model(name, shape=(1, 3, 3), levels=2, **options):
    """In float64, of random parameters that are not small; PixelCNN++ for sides that can be halved twice."""
    torch.manual_seed(0)
    shape = (shape[0], 4, 4) if name in SCALES else shape
    network = ALL[name](shape=shape, levels=levels, **options).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    return network


def images(network, n):
    torch.manual_seed(1)
    return torch.randint(network.levels, (n, *network.shape), dtype=torch.uint8)


def everything(shape, levels):
    """Every image there is."""
    tokens = torch.tensor(list(product(range(levels), repeat=math.prod(shape))))
    return arranged(tokens, shape, levels)


@pytest.mark.parametrize("name", [*VECTORS, *MIXED, *MAPS])
@torch.no_grad()
def test_probabilities_of_all_binary_images_sum_to_one(name):
    x, network = everything((1, 3, 3), 2), model(name)
    for y in range(3 if name in LABELLED else 1):
        total = network.log_prob(x, torch.full((len(x),), y)).exp().sum().item()
        assert total == pytest.approx(1, abs=1e-12)


@torch.no_grad()
def test_probabilities_of_all_binary_images_sum_to_one_for_pixelcnnpp():
    x, network = everything((1, 4, 4), 2), model("pixelcnn++", dim=2, components=1)
    total = sum(network.log_prob(part).exp().sum().item() for part in x.split(4096))
    assert total == pytest.approx(1, abs=1e-11)


@pytest.mark.parametrize("name", [*VECTORS, *MIXED, *MAPS])
@torch.no_grad()
def test_probabilities_of_all_coloured_images_sum_to_one(name):
    for shape, levels in (((3, 1, 3), 2), ((2, 2, 1), 5)):
        x, network = everything(shape, levels), model(name, shape, levels)
        total = network.log_prob(x, torch.ones(len(x), dtype=torch.int64)).exp().sum().item()
        assert total == pytest.approx(1, abs=1e-12)


def influence(network, y=None):
    """Whether what is said of place i (rows) hears element j (columns), by autograd, in the order of reading."""
    seen = 0
    for x in images(network, 6).double():
        if isinstance(network, PixelCNN | GatedPixelCNN | PixelCNNPP):
            slopes = jacobian(lambda x: mixed(network(x[None], y)[0, :, :, 0]), x)  # (T, C, H, W)
            slopes = slopes.movedim(1, -1).flatten(1)
        elif isinstance(network, NADE):
            slopes = jacobian(lambda x: mixed(network.hidden(x[None])[0]), sequence(x[None])[0].double())
        else:
            slopes = jacobian(lambda x: mixed(said(network, x)), sequence(x[None])[0].double())
            if isinstance(network, MADE):
                order = network.ranks[0].argsort()
                slopes = slopes[order][:, order]
        seen = seen + slopes.abs()
    return seen > 0


def mixed(parameters):
    """One number for each place, in which all its parameters (F, T) are heard."""
    return torch.linspace(1, 2, len(parameters)).sin().double() @ parameters


def said(network, x):
    """What FVSBN and MADE say of each element, from numbers."""
    h = x[None]
    for layer in network.blocks:
        h = layer(h)
    if getattr(network, "direct", None) is not None:
        h = h + network.direct(x[None])
    return h[0].unflatten(0, (network.features, -1))


@pytest.mark.parametrize("name", [*VECTORS, "made of masks", "made of orders"])
def test_each_element_hears_all_elements_before_it_and_none_after(name):
    wide = {"hidden": [200] * len(ALL[name].keywords["hidden"])} if "made" in name else {}
    for shape, levels in (((1, 3, 3), 2), ((2, 2, 2), 4)):
        heard = influence(model(name, shape, levels, **wide))
        assert torch.equal(heard, torch.ones_like(heard).tril(-1))


@pytest.mark.parametrize("name", [*VECTORS, *MAPS, *SCALES])
@torch.no_grad()
def test_a_change_is_heard_by_later_elements_only(name):
    network = model(name, (2, 4, 4), 4)
    x = images(network, 2)
    y = torch.tensor([0, 1]) if name in LABELLED else None
    before = network(x, y)
    order = getattr(network, "order", network.ranks[0].argsort() if "made" in name else torch.arange(32))
    for rank, place in enumerate(order.tolist()):
        tokens = sequence(x)
        tokens[:, place] = (tokens[:, place] + 1) % 4
        after = network(arranged(tokens, network.shape, 4), y)
        earlier = slice(0, rank // network.together + 1)
        torch.testing.assert_close(after[:, :, earlier], before[:, :, earlier], rtol=0, atol=1e-12)


def test_gated_pixelcnn_has_no_blind_spot_and_reads_channels_in_order():
    for shape, levels in (((1, 5, 5), 2), ((3, 3, 4), 4)):
        network = model("gated", shape, levels, depth=6, dim=16, head=16, first=3)
        heard = influence(network)
        assert torch.equal(heard, torch.ones_like(heard).tril(-1))


def test_pixelcnn_reads_channels_in_order():
    heard = influence(model("pixelcnn", (3, 1, 4), 4, depth=4, dim=16, head=16))
    assert torch.equal(heard, torch.ones_like(heard).tril(-1))


def test_pixelcnn_has_a_blind_spot_above_to_the_right():
    """It hears (r - i, c + j) where j <= i, with windows of 3: nothing that is two to the right, one row up."""
    H, W = 4, 6
    heard = influence(model("pixelcnn", (1, H, W), first=3, depth=6, dim=16, head=16))
    for (r, c), (s, d) in product(product(range(H), range(W)), repeat=2):
        sees = (s, d) < (r, c) and d - c <= r - s
        assert heard[r * W + c, s * W + d] == sees


@pytest.mark.parametrize("name", SCALES)
def test_pixelcnnpp_hears_all_pixels_before_and_none_after(name):
    network = model(name, (2, 4, 4), 5, dim=6)
    heard = influence(network, torch.tensor([1]) if name in LABELLED else None)  # 16 pixels, 32 elements
    heard = heard.unflatten(1, (16, 2))
    assert torch.equal(heard.all(2), torch.ones(16, 16, dtype=torch.bool).tril(-1))
    assert torch.equal(heard.any(2), heard.all(2))


@pytest.mark.parametrize(("kind", "near"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_nades_elements_one_by_one_say_what_all_together_do_and_so_do_gradients(kind, near):
    torch.manual_seed(0)
    hidden = Hidden(30, 7, 3).to(kind)
    x, weight = torch.rand(5, 30, dtype=kind, requires_grad=True), torch.randn(5, 3, 30, dtype=kind)
    results = []
    for said in (hidden(x), hidden.together(x) + hidden.b):
        results.append([said, *torch.autograd.grad((weight * said).sum(), [x, *hidden.parameters()])])
    for one, both in zip(*results, strict=True):
        torch.testing.assert_close(one, both, rtol=0, atol=near)


@torch.no_grad()
def test_nade_is_its_definition():
    network = model("nade in a random order", (1, 2, 3))
    x = images(network, 5)
    W, c, V, b = (getattr(network.hidden, part) for part in "WcVb")
    tokens = sequence(x)[:, network.order].double()
    told = torch.zeros(5, dtype=torch.float64)
    for i in range(5):
        for t in range(6):
            a = c.clone()
            for s in range(t):
                a += tokens[i, s] * W[s]
            p = (b[0, t] + V[0, t] @ a.sigmoid()).sigmoid()
            told[i] += (p if tokens[i, t] else 1 - p).log()
    torch.testing.assert_close(network.log_prob(x), told)


@torch.no_grad()
def test_fvsbn_is_its_definition_and_begins_at_one_bit_each():
    network = model("fvsbn", (1, 2, 3))
    x = images(network, 5)
    tokens = sequence(x).double()
    W, b = network.regressions.weight, network.regressions.bias
    told = sum(
        torch.distributions.Bernoulli(logits=b[t] + tokens[:, :t] @ W[t, :t]).log_prob(tokens[:, t])
        for t in range(6)
    )
    torch.testing.assert_close(network.log_prob(x), told)
    begin = FVSBN(shape=(1, 2, 3), levels=2).log_prob(x)
    torch.testing.assert_close(begin, torch.full((5,), -6 * math.log(2)))


@torch.no_grad()
def test_made_without_a_hidden_layer_is_an_fvsbn():
    one, other = model("made without a hidden layer"), model("fvsbn")
    other.regressions.load_state_dict(one.output.state_dict())
    x = images(one, 6)
    assert torch.equal(one.log_prob(x), other.log_prob(x))


@torch.no_grad()
@pytest.mark.parametrize("name", MIXED)
def test_masks_take_turns_in_training_and_are_averaged_after_it(name):
    network = model(name)
    x = images(network, 6)
    each = []
    for step in (0, 1, 2, 3):
        network.train().at(step)
        each.append(network.loss(x)["nats"].item())
        alone = network.likelihood.log_prob(network(x, m=step % 3), in_order(network, x, step))
        assert each[-1] == pytest.approx(-alone.mean().item())
    assert each[3] == each[0]
    assert len({round(value, 6) for value in each}) == 3
    p = torch.stack(
        [network.likelihood.log_prob(network(x, m=m), in_order(network, x, m)).exp() for m in range(3)]
    )
    torch.testing.assert_close(network.log_prob(x), p.mean(0).log())
    assert network.eval().loss(x)["nats"].item() == pytest.approx(-p.mean(0).log().mean().item())
    assert can(network, Scheduled)


def in_order(network, x, step):
    return sequence(x)[:, None, network.ranks[step % 3].argsort(), None]


def test_masks_are_part_of_what_is_stored():
    one, other = (MADE(shape=(1, 3, 3), levels=2, hidden=[9], random_order=True, seed=s) for s in (0, 1))
    x = images(one, 4)
    assert not torch.equal(one.ranks, other.ranks)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.log_prob(x), other.log_prob(x))


CASES = [((1, 4, 4), 2, 0), ((1, 4, 4), 17, 6), ((3, 4, 8), 5, 9)]


@pytest.mark.parametrize("name", [name for name in ALL if name not in MIXED])
@pytest.mark.parametrize(("shape", "levels", "P"), CASES)
def test_samples_are_those_of_the_slow_way(name, shape, levels, P):
    for temperature in (1.0, 0.7):
        network = model(name, shape, levels)
        y = torch.arange(6) % 3 if name in LABELLED else None
        prompt = sequence(images(network, 6))[:, :P]
        drawn_ = []
        for way in (network.sample, partial(recomputed, network)):
            torch.manual_seed(2)
            drawn_.append(way(6, y, prompt=prompt, temperature=temperature))
        assert torch.equal(*drawn_)
        assert drawn_[0].shape == (6, *network.shape)
        assert drawn_[0].dtype == torch.uint8


@pytest.mark.parametrize("name", ["pixelcnn++", "pixelcnn++ with labels"])
def test_samples_of_several_scales_are_those_of_the_slow_way(name):
    network = ALL[name](shape=(3, 12, 8), levels=9, depth=2).double().eval()
    drawn_ = []
    for way in (network.sample, partial(recomputed, network)):
        torch.manual_seed(2)
        drawn_.append(way(4))
    assert torch.equal(*drawn_)


@pytest.mark.parametrize("name", ALL)
def test_samples_follow_the_models_own_probabilities(name):
    """Given all but the last three elements, in the order of reading, the eight images that are left."""
    network, n = model(name), 3000
    T = math.prod(network.shape)
    natural = network.protocol["order"] == "row, column, channel"
    if name == "made of orders":  # it has no beginning
        P, T, network = 0, 4, model(name, (1, 2, 2))
    else:
        P = T - 3
    beginning = torch.randint(2, (P,), generator=torch.Generator().manual_seed(0))
    ends = torch.tensor(list(product([0, 1], repeat=T - P)))
    tokens = torch.cat([beginning.expand(len(ends), P), ends], 1)
    x = arranged(tokens, network.shape, 2) if natural or P == 0 else network.image(tokens)
    y = torch.full((n,), 2)
    with torch.no_grad():
        p = network.log_prob(x, y[: len(x)]).softmax(0)
    torch.manual_seed(3)
    drawn_ = network.sample(n, y, prompt=beginning.expand(n, P) if P else None)
    seen = (drawn_[:, None] == x).flatten(2).all(2)
    assert seen.any(1).all()
    error = (seen.double().mean(0) - p).abs()
    assert (
        error < 4 * (p * (1 - p) / n).sqrt() + 3 / n
    ).all()  # the second part: what is seen once is no surprise


@pytest.mark.parametrize("name", LABELLED)
@torch.no_grad()
def test_labels_change_what_is_probable_and_are_drawn_where_they_are_missing(name):
    network = model(name)
    x = images(network, 8)
    chances = torch.stack([network.log_prob(x, torch.full((8,), y)) for y in range(3)])
    assert (chances[0] - chances[1]).abs().max() > 1e-2
    assert network.sample(5).shape == (5, *network.shape)
    with pytest.raises(ValueError, match="needs y"):
        network.log_prob(x)
    with pytest.raises(ValueError, match="conditional=true"):
        ALL[name](shape=network.shape, levels=2, classes=None)


@pytest.mark.parametrize("name", ALL)
def test_a_temperature_of_zero_takes_the_most_probable_and_a_low_one_often(name):
    network = model(name, likelihood=Bernoulli) if "likelihood" in ALL[name].keywords else model(name)
    if name not in MIXED:
        cold = network.sample(2, torch.tensor([1, 1]), temperature=0)
        assert torch.equal(cold[0], cold[1])
        assert torch.equal(cold, recomputed(network, 2, torch.tensor([1, 1]), temperature=0))
    torch.manual_seed(0)
    y = torch.ones(200, dtype=torch.int64)
    values = [
        network.log_prob(network.sample(200, y, temperature=t), y).mean().item() for t in (0.3, 1.0, 3.0)
    ]
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("name", ALL)
def test_a_prompt_is_kept_and_a_bad_one_refused(name):
    network = model(name, (2, 2, 4), 3)
    T = math.prod(network.shape)
    x = images(network, 3)
    if name == "made of orders":
        with pytest.raises(ValueError, match="no place in 3 orders"):
            network.sample(3, prompt=sequence(x)[:, :2])
        return
    for P in (4, T):
        tokens = sequence(x)[:, :P]
        kept = network.sample(3, prompt=tokens)
        back = {"nade in a random order": "order"}.get(name)
        places = network.order[:P] if back else network.ranks[0].argsort()[:P] if "made" in name else range(P)
        assert torch.equal(sequence(kept)[:, places], tokens)
    for bad in (tokens[:2], torch.zeros(3, T + 2), torch.full((3, 2), 3), torch.full((3, 2), -1)):
        with pytest.raises(ValueError, match="a prompt of shape"):
            network.sample(3, prompt=bad)
    with pytest.raises(ValueError, match="temperature=-1"):
        network.sample(3, temperature=-1.0)
    if name in SCALES:
        with pytest.raises(ValueError, match="channels of a pixel together"):
            network.sample(3, prompt=tokens[:, :3])


@pytest.mark.parametrize("name", ALL)
def test_half_precision_comes_close(name):
    network = model(name, (1, 4, 4), 5).float()
    x, y = images(network, 8), torch.arange(8) % 3
    with torch.autocast("cpu", torch.bfloat16):
        half = network.log_prob(x, y)
        network.sample(2)
    assert half.dtype == torch.float32
    assert half.isfinite().all()
    torch.testing.assert_close(half, network.log_prob(x, y), rtol=5e-2, atol=0.5)


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_gets_a_gradient_and_checkpointing_changes_none(name):
    network = model(name, (2, 4, 4), 4, **({"dropout": 0.3} if name in SCALES else {})).train()
    x, y = images(network, 4), torch.arange(4) % 3
    policies = ("none", "full", 2, "selective", "sqrt")
    found = {}
    for policy in policies:
        checkpoint_blocks(network, policy)
        network.zero_grad()
        torch.manual_seed(5)
        loss = network.loss(x, y)["loss"]
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters()), policy
        found[policy] = [loss, *(p.grad.clone() for p in network.parameters())]
    assert sum(bool(grad.any()) for grad in found["none"]) == len(found["none"])
    for policy in policies[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found["none"], found[policy])), policy


@pytest.mark.parametrize("name", ALL)
def test_the_loss_is_in_nats_per_element(name):
    network = model(name, (3, 4, 4), 17)
    x, y = images(network, 4), torch.arange(4) % 3
    terms = network.loss(x, y)
    assert terms["nats"].item() == pytest.approx(-network.log_prob(x, y).mean().item())
    assert terms["loss"].item() == pytest.approx(terms["nats"].item() / 48)
    assert all(can(network, ability) for ability in (Density, Sampler))
    assert network.kind == "exact"


def test_orders_are_told():
    told = {name: model(name).protocol["order"] for name in ALL}
    assert told["nade in a random order"] == "random, seed 0"
    assert told["made of orders"] == "random, 3 of them, seed 0"
    assert {told[name] for name in (*MAPS, *SCALES, "fvsbn", "made of masks")} == {"row, column, channel"}
    assert model("made of masks").protocol["masks"] == 3


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_other_data_are_refused(make):
    for shape, levels in (((16,), 2), ((1, 4, 4), None)):
        with pytest.raises(Unfit) as refusal:
            make(shape=shape, levels=levels)
        assert not refusal.value.fits(Space(shape, levels))
        assert refusal.value.fits(Space((1, 4, 4), 2))


def test_pixelcnnpp_needs_sides_that_can_be_halved_twice():
    with pytest.raises(Unfit, match="multiples of 4") as refusal:
        PixelCNNPP(shape=(1, 8, 6), levels=2, **scales)
    assert not refusal.value.fits(Space((1, 8, 6), 2))


@torch.no_grad()
@pytest.mark.parametrize("first", [False, True])
def test_a_gated_layer_is_the_papers_equations(first):
    """v' = tanh(a) sigmoid(b), h' = h + 1x1(tanh(a) sigmoid(b)), a and b each with what the label adds."""
    torch.manual_seed(0)
    features, y = torch.zeros(4, dtype=torch.int64), torch.tensor([2, 0])
    layer = GatedLayer(features, features, 3, 3, first=first).double()
    v, h = torch.randn(2, 2, 4, 5, 6, dtype=torch.float64)
    W_v, W_h = layer.vertical.kernel(), layer.horizontal.kernel()
    label_v, label_h = layer.label(y)[:, :, None, None].split(8, 1)
    below = F.conv2d(F.pad(v, (1, 1, 0 if first else 1, 0)), W_v, layer.vertical.bias) + label_v
    beside = F.conv2d(F.pad(h, (1, 0)), W_h, layer.horizontal.bias)[..., :6]
    beside = beside + F.conv2d(below, layer.link.kernel(), layer.link.bias) + label_h
    v_, h_ = (f[:, :4].tanh() * f[:, 4:].sigmoid() for f in (below, beside))
    h_ = F.conv2d(h_, layer.out.kernel(), layer.out.bias)
    told = layer(torch.cat([v, h], 1), y)
    torch.testing.assert_close(told, torch.cat([v_, h_ if first else h + h_], 1))


@torch.no_grad()
def test_a_block_of_pixelcnnpp_is_the_papers_equations():
    """x + a sigmoid(b), (a, b) = conv(e(conv(e(x)) + 1x1(e(aside)))) + what the label adds, e(x) = elu(x, -x)."""
    torch.manual_seed(0)
    block = GatedResidual(3, {"up": 1, "left": 1}, 2, 0.5, 4).double().eval()
    x, aside = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 6, 4, 5).double()
    y = torch.tensor([3, 1])

    def e(x):
        return torch.cat([F.elu(x), F.elu(-x)], 1)

    def conv(layer, x):
        return F.conv2d(F.pad(x, (layer.left, layer.right, layer.up, 0)), layer.weight, layer.bias)

    both = conv(block.after, e(conv(block.before, e(x)) + conv(block.aside, e(aside))))
    both = both + block.label(y)[:, :, None, None]
    torch.testing.assert_close(block(x, aside, y), x + both[:, :3] * both[:, 3:].sigmoid())


@pytest.mark.parametrize("make", [PixelCNN, GatedPixelCNN])
@pytest.mark.parametrize(("part", "side"), [("first", 1), ("first", 4), ("kernel", 2)])
def test_a_window_without_a_middle_is_refused(make, part, side):
    with pytest.raises(ValueError, match=f"side {side} .* try {max(3, side + 1)}"):
        make(shape=(1, 4, 4), levels=2, **net, **{part: side})


def test_no_masks_are_refused():
    with pytest.raises(ValueError, match="masks=0"):
        MADE(shape=(1, 3, 3), levels=2, masks=0)


def test_the_first_pixel_is_told_by_the_parameters_alone():
    for name in VECTORS:
        network = model(name)
        x = images(network, 6)
        first = network(x)[:, :, 0]
        assert torch.equal(first, first[:1].expand_as(first))
        assert network.elements(x).shape == (6, 1, 9, 1)
