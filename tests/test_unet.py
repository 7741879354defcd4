"""The U-Net, what makes it fast, and images larger than it was trained on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoo.nn import Condition, UNet, checkpoint_blocks
from zoo.nn.field_dropout import FieldDropout
from zoo.nn.norm_silu import NormSiLU
from zoo.nn.unet import Double, Look, wide_group_norm
from zoo.types import Unfit

SMALL = {"dim": 8, "mult": (1, 2), "depth": 1, "attention": (8,), "heads": 2}
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def network(context=None, **options):
    """A small one whose weights all matter."""
    torch.manual_seed(0)
    model = UNet((3, 8, 8), context, **SMALL | options)
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model.double()


def batch(side=8):
    torch.manual_seed(1)
    c = Condition(
        torch.randn(2, 5).double(),
        torch.randn(2, 4, 5).double(),
        torch.tensor([[True, True, False, False], [True, True, True, True]]),
    )
    return torch.randn(2, 3, side, side).double(), torch.rand(2).double(), c


@pytest.mark.parametrize("heads", [1, 4], ids=["ddpm", "ot_cfm"])
def test_it_has_the_papers_parameters_for_cifar(heads):
    with torch.device("meta"):
        model = UNet((3, 32, 32), None, heads=heads)
    assert sum(p.numel() for p in model.parameters()) == 35_746_307
    looks = [part for part in model.modules() if isinstance(part, Look)]
    assert {(look.heads, look.q.out_features // look.heads) for look in looks} == {(heads, 256 // heads)}
    assert len(looks) == 2 + 3 + 1  # at 16 x 16 on the way down and up, and in the middle


@pytest.mark.parametrize("context", [None, 5])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_each_head_looks_with_its_own_channels(heads, context):
    torch.manual_seed(0)
    look = Look(8, heads, context).double()
    x, memory = torch.randn(2, 8, 3, 4).double(), None if context is None else torch.randn(2, 6, 5).double()
    tokens = look.norm(x).flatten(2).mT
    k, v = look.kv(tokens if memory is None else memory).chunk(2, -1)
    parts = zip(*(part.chunk(heads, -1) for part in (look.q(tokens), k, v)))
    y = torch.cat([(q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v for q, k, v in parts], -1)
    torch.testing.assert_close(look(x, memory), x + look.out(y).mT.unflatten(2, (3, 4)))


@pytest.mark.parametrize("context", [None, 5])
def test_it_tells_zero_at_first(context):
    x, t, c = batch()
    model = UNet((3, 8, 8), context, **SMALL).double()
    assert model(x, t, None if context is None else c).abs().max() == 0


@pytest.mark.parametrize("context", [None, 64])
def test_weights_start_as_ddpms(context):
    """Even on +-sqrt(6 / (enter + leave)) for each map, keys' and values' among them; zero where a branch ends."""
    torch.manual_seed(0)
    model = UNet((3, 8, 8), context, dim=64, mult=(1, 2), depth=1)
    for look in (model.middle[0].attention, model.middle[0].cross or model.middle[0].attention):
        k, v = look.kv.weight.chunk(2)
        for weight in (look.q.weight, k, v):
            assert weight.abs().max().item() == pytest.approx((6 / sum(weight.shape)) ** 0.5, rel=0.01)
        assert not torch.equal(k, v)
        assert look.out.weight.abs().max() == 0
    inner = model.middle[0].inner.weight
    assert inner.abs().max().item() == pytest.approx((6 / (2 * 9 * 128)) ** 0.5, rel=0.01)


def test_every_block_is_the_shortcut_at_first():
    model = UNet((3, 8, 8), None, **SMALL).double()
    x, h = torch.randn(2, 8, 8, 8).double(), torch.randn(2, 32).double()
    assert torch.equal(model.down[0](x, h), x)


@pytest.mark.parametrize("context", [None, 5])
def test_the_loss_reaches_every_parameter(context):
    x, t, c = batch()
    model = network(context)
    model(x, t, None if context is None else c).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_time_vector_and_words_change_what_it_tells_and_words_that_are_not_there_do_not():
    x, t, c = batch()
    model = network(5).eval()
    y = model(x, t, c)
    assert (model(x, t + 0.3, c) - y).abs().max() > 1e-6
    assert (model(x, t, c._replace(vector=c.vector + 1)) - y).abs().max() > 1e-6
    for word, seen in ((1, True), (2, False)):
        tokens = c.tokens.clone()
        tokens[0, word] += 1
        change = (model(x, t, c._replace(tokens=tokens)) - y).abs().flatten(1).max(1).values
        assert bool(change[0] > 1e-9) == seen
        assert change[1] == 0


def test_examples_do_not_see_each_other():
    x, t, c = batch()
    model = network(5).eval()
    turned = Condition(*(part.flip(0) for part in c))
    torch.testing.assert_close(model(x.flip(0), t.flip(0), turned).flip(0), model(x, t, c))


def test_a_class_is_a_single_word():
    x, t, c = batch()
    model = network(5).eval()
    alone = Condition(c.vector)
    as_word = Condition(c.vector, c.vector.unsqueeze(1), torch.ones(2, 1, dtype=torch.bool))
    torch.testing.assert_close(model(x, t, alone), model(x, t, as_word))


@pytest.mark.parametrize("policy", ["full", "sqrt", "selective", 2])
def test_checkpointing_changes_no_gradient(policy):
    x, t, c = batch()
    gradients = []
    for chosen in ("none", policy):
        model = network(5, dropout=0.5).train()
        checkpoint_blocks(model, chosen)
        torch.manual_seed(2)
        model(x, t, c).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_odd_sizes_are_refused_in_words():
    with pytest.raises(Unfit, match=r"shape=\[1, 28, 28\] is halved 3 times.*multiples of 8"):
        UNet((1, 28, 28), None, mult=(1, 2, 2, 2), attention=())
    with pytest.raises(Unfit, match=r"shape=\[3, 7, 8\] is halved 1 times"):
        network()(torch.zeros(1, 3, 7, 8).double(), torch.zeros(1).double())
    with pytest.raises(Unfit, match="must be an image"):
        UNet((2,), None)
    with pytest.raises(ValueError, match=r"heights \[8, 4\]; try backbone.attention=\[4\]"):
        UNet((3, 8, 8), None, dim=8, mult=(1, 2), attention=(16,))
    with pytest.raises(ValueError, match="16 channels cannot be split over heads=3; try heads=4"):
        Look(16, 3)


@pytest.mark.parametrize(("side", "halvings", "height"), [(32, 3, 16), (28, 2, 14), (8, 3, 4), (7, 0, None)])
def test_sides_are_halved_as_far_as_they_go_and_half_the_height_looks_at_itself(side, halvings, height):
    network = UNet((1, side, side), None, dim=8, depth=1)
    assert network.halvings == halvings
    looks = [isinstance(stage.attention, Look) for stage in network.down if hasattr(stage, "attention")]
    assert looks == [height == side // 2**i for i in range(halvings + 1)]


def test_it_takes_larger_images_than_those_it_was_made_for():
    x, t, _ = batch(side=12)
    assert network().eval()(x, t).shape == x.shape


@pytest.mark.parametrize("training", [True, False])
def test_half_precision_is_near(training):
    x, t, c = batch()
    model = network(5, dropout=0.0).float().train(training)
    x, t, c = x.float(), t.float(), Condition(c.vector.float(), c.tokens.float(), c.mask)
    full = model(x, t, c)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x, t, c)
    assert half.dtype == torch.bfloat16
    assert (half - full).norm() < 0.05 * full.norm()
    half.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_group_has_channels_enough_to_keep_what_the_time_adds():
    assert [wide_group_norm(channels).num_groups for channels in (128, 384, 32, 8, 6, 9)] == [
        32,
        32,
        8,
        2,
        1,
        1,
    ]
    x = torch.randn(2, 8, 4, 4).double()
    shift = torch.randn(2, 8, 1, 1).double()
    norm = wide_group_norm(8).double()
    assert (norm(x + shift) - norm(x)).abs().max() > 0.1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("channels", "groups"), [(8, 8), (8, 4), (8, 1)])
def test_norm_and_silu_are_torchs_and_so_are_their_gradients(layout, channels, groups):
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, channels).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (torch.randn(3, channels, 5, 6).double() + 2).contiguous(memory_format=layout).requires_grad_()
    slope = torch.randn_like(x)
    one = NormSiLU(norm).train()(x)
    torch.testing.assert_close(one, F.silu(norm(x)))
    torch.testing.assert_close(one, NormSiLU(norm).eval()(x))
    leaves = [x, norm.weight, norm.bias]
    mine, plain = (torch.autograd.grad((y * slope).sum(), leaves) for y in (one, F.silu(norm(x))))
    for a, b in zip(mine, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_doubling_is_four_equal_pixels_and_a_convolution():
    torch.manual_seed(0)
    double = Double(4).double()
    x = torch.randn(2, 4, 3, 5).double()
    plain = F.conv2d(F.interpolate(x, scale_factor=2.0), double.weight, double.bias, padding=1)
    torch.testing.assert_close(double(x), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_as_often_as_it_says_and_keeps_the_mean(layout, p):
    torch.manual_seed(0)
    x = torch.ones(64, 9, 31, 7).contiguous(memory_format=layout).requires_grad_()
    y = FieldDropout(p).train()(x)
    n = x.numel()
    assert abs((y == 0).double().mean().item() - p) < 4 * (p * (1 - p) / n) ** 0.5 + 2**-16
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=2e-4, atol=0)
    assert y.stride() == x.stride()
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, y.detach())
    dropped = (y == 0).double().reshape(64, -1)
    correlation = ((dropped[:, 1:] - p) * (dropped[:, :-1] - p)).mean().item()  # neighbours share a draw
    assert abs(correlation) < 5 * p * (1 - p) / n**0.5


def test_dropout_does_nothing_while_sampling_and_refuses_certainty():
    x = torch.randn(2, 3)
    assert FieldDropout(0.5).eval()(x) is x
    assert FieldDropout(0.0).train()(x) is x
    with pytest.raises(ValueError, match="dropout=1 is a probability below 1"):
        FieldDropout(1)


def test_with_diffusers_weights_it_tells_what_theirs_tells():
    theirs = pytest.importorskip("diffusers", reason="diffusers is a peer of the benchmarks").UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(128, 128),  # as many as give 32 groups in both
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        norm_eps=1e-6,
    )
    ours = UNet((3, 8, 8), None, dim=128, mult=(1, 1), depth=1, attention=(4,), dropout=0.0)
    pairs = [
        (ours.embed.inner, theirs.time_embedding.linear_1),
        (ours.embed.outer, theirs.time_embedding.linear_2),
    ]
    pairs += [
        (ours.enter, theirs.conv_in),
        (ours.norm.norm, theirs.conv_norm_out),
        (ours.leave, theirs.conv_out),
    ]
    mine = [*ours.down, *ours.middle, *ours.up]
    stages, resampled = ours.blocks, [block for block in mine if block not in ours.blocks]
    parts = [*theirs.down_blocks, theirs.mid_block, *theirs.up_blocks]
    pairs += zip(
        resampled, [theirs.down_blocks[0].downsamplers[0].conv, theirs.up_blocks[0].upsamplers[0].conv]
    )
    looks = [stage.attention for stage in stages if stage.attention]
    theirs_looks = [look for part in parts for look in getattr(part, "attentions", [])]
    for one, other in zip(stages, [block for part in parts for block in part.resnets], strict=True):
        pairs += [(one.norm.norm, other.norm1), (one.inner, other.conv1), (one.time, other.time_emb_proj)]
        pairs += [(one.inner_norm.norm, other.norm2), (one.out, other.conv2)]
        pairs += [] if isinstance(one.shortcut, nn.Identity) else [(one.shortcut, other.conv_shortcut)]
    for one, other in zip(looks, theirs_looks, strict=True):
        pairs += [(one.norm, other.group_norm), (one.q, other.to_q), (one.out, other.to_out[0])]
        one.kv.weight.data = torch.cat([other.to_k.weight, other.to_v.weight]).detach()
        one.kv.bias.data = torch.cat([other.to_k.bias, other.to_v.bias]).detach()
    for one, other in pairs:
        one.load_state_dict(other.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    x, t = torch.randn(2, 3, 8, 8), torch.rand(2)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x, t), theirs.eval()(x, 1000 * t).sample, rtol=1e-4, atol=1e-5)
