"""The VQ-VAE: its codes, its loss, what it measures of its reconstructions, and what only training may move."""

import json
import math
from functools import partial

import commands
import pytest
import torch
from conftest import ROOT, composed
from omegaconf import OmegaConf
from torch import nn

from zoo.config.build import build
from zoo.models import VQVAE
from zoo.nn import (
    FSQ,
    Absolute,
    Bilinear,
    Categorical,
    EMACodebook,
    FieldDecoder,
    FieldEncoder,
    Nearest,
    ResidualVQ,
    Shuffle,
    Squared,
    Transposed,
    VectorQuantizer,
    checkpoint_blocks,
)
from zoo.nn.fidelity import mse, psnr, ssim
from zoo.runs import Run
from zoo.training import checkpoint_files
from zoo.types import Space, Unfit

QUANTIZERS = sorted(path.stem for path in (ROOT / "configs/quantizer").glob("*.yaml"))
small = {
    "dim": 4,
    "encoder": partial(FieldEncoder, widths=[4, 8], depth=1),
    "decoder": partial(FieldDecoder, widths=[4, 8], depth=1),
    "quantizer": partial(VectorQuantizer, levels=8),
}


def model(**options):
    torch.manual_seed(0)
    return VQVAE(**{"shape": (1, 8, 12), "levels": 17, **small, **options})


def images(n=6, levels=17, shape=(1, 8, 12)):
    return torch.randint(levels, (n, *shape), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_makes_a_codec(name):
    facts = ["dataset.shape=[1,8,8]", "dataset.levels=17", "dataset.classes=null"]
    words = ["encoder.widths=[4,8]", "model.dim=6"]
    config = composed("train", "model=vqvae", f"quantizer={name}", *facts, *words)
    torch.manual_seed(0)
    codec = build(OmegaConf.to_container(config, resolve=True)["model"], "model")
    x = images(shape=(1, 8, 8))
    codec.prepare([{"x": x}])
    terms = codec.loss(x)
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in codec.parameters())
    codec.eval()
    z = codec.encode(x)
    assert z.shape == (6, *codec.latent.shape)
    assert codec.latent.shape == (2 if name == "residual" else 1, 2, 2)
    assert 0 <= int(z.min()) <= int(z.max()) < codec.latent.levels
    back = codec.decode(z)
    assert back.dtype == torch.uint8
    assert back.shape == x.shape
    assert torch.equal(back, codec.reconstruct(x))
    parameters, codes, _ = codec.through(x)
    torch.testing.assert_close(codec.decoded(z), parameters)
    assert torch.equal(codes.view_as(z), z)
    told = codec.summarize(codec.statistics(x))
    assert 0 < told["codebook_use"] <= 1 <= told["codebook_perplexity"]


@pytest.mark.parametrize("upsample", [Nearest, Bilinear, Transposed, Shuffle])
@pytest.mark.parametrize("attention", [False, True])
def test_the_decoder_is_the_encoders_mirror(upsample, attention):
    x = torch.randn(2, 3, 8, 16)
    encoder = FieldEncoder((3, 8, 16), 5, widths=[4, 6], depth=[0, 1], attention=attention)
    decoder = FieldDecoder(5, (3, 8, 16), widths=[4, 6], depth=[0, 1], attention=attention, upsample=upsample)
    assert encoder(x).shape == (2, 5, 2, 4)
    assert decoder(encoder(x)).shape == x.shape
    assert decoder.output[-1].weight.shape[0] == 3
    kinds = [type(block).__name__ for block in encoder.blocks]
    assert ("FieldAttention" in kinds) == attention
    assert upsample(4, 7)(torch.randn(1, 4, 3, 5)).shape == (1, 7, 6, 10)


def test_attention_lets_every_place_see_all_others():
    for attention in (False, True):
        torch.manual_seed(0)
        encoder = FieldEncoder((1, 32, 32), 2, widths=[4, 4], depth=0, attention=attention, norm=nn.Identity)
        x = torch.randn(1, 1, 32, 32, requires_grad=True)
        (grad,) = torch.autograd.grad(encoder(x)[0, :, 0, 0].sum(), x)
        assert (grad[0, 0, -1].abs().sum() > 0) == attention


def test_images_that_cannot_be_halved_are_refused():
    with pytest.raises(Unfit, match="multiples of 4") as refused:
        model(shape=(1, 8, 10))
    assert not refused.value.fits(Space((1, 8, 10), 17))
    assert refused.value.fits(Space((3, 8, 4), 2))
    with pytest.raises(Unfit, match="images of integers"):
        model(levels=None)
    with pytest.raises(ValueError, match=r"depth=\[1\]"):
        FieldEncoder((1, 8, 8), 2, widths=[4, 4], depth=[1])


def test_the_loss_is_the_sum_of_its_named_terms():
    x = images()
    for distortion, power in ((Squared, 2), (Absolute, 1)):
        codec = model(distortion=distortion)
        codec.prepare([{"x": x}])
        terms = codec.loss(x)
        assert set(terms) == {"loss", "reconstruction", "commitment", "codebook"}
        parts = sum(value for name, value in terms.items() if name != "loss")
        torch.testing.assert_close(terms["loss"], parts)
        v = x.float() / 8 - 1
        expected = (codec.through(x)[0] - v).abs().pow(power).mean() / (v - v.mean()).abs().pow(power).mean()
        torch.testing.assert_close(terms["reconstruction"], expected)


def test_the_spread_is_the_variance_of_the_training_data():
    codec, x = model(), images(50)
    codec.prepare({"x": part} for part in x.split(20))
    torch.testing.assert_close(codec.spread, (x.float() / 8 - 1).var(correction=0))
    assert codec.training
    plain = model(normalize=False)
    plain.prepare([{"x": x}])
    assert plain.spread == 1


def test_prepare_takes_as_many_batches_as_the_quantizer_wants_and_no_more():
    codec = model(quantizer=partial(VectorQuantizer, levels=8, kmeans=2), normalize=False)
    taken = []

    def batches():
        while True:
            taken.append(1)
            yield {"x": images(2000)}

    codec.prepare(batches())
    assert len(taken) == 5  # 10,000 images; the 128 rows for k-means are in the first batch
    assert codec.quantizer.codebook.weight.abs().max() > 1 / 8


def test_a_likelihood_gives_nats_of_the_image_given_its_codes():
    codec, x = model(distortion=Categorical), images()
    codec.prepare([{"x": x}])
    assert codec.explicit
    z = codec.encode(x)
    log_p = codec.log_likelihood(x, z)
    torch.testing.assert_close(codec.loss(x)["reconstruction"], -log_p.mean() / (8 * 12))
    every = torch.arange(17).view(17, 1, 1, 1).expand(17, 1, 8, 12)
    logits = codec.decoded(z[:1]).expand(17, -1, -1, -1).unflatten(1, (17, 1))
    p = logits.softmax(1).gather(1, every.unsqueeze(1))
    torch.testing.assert_close(p.sum(0), torch.ones_like(p[0]))
    with pytest.raises(ValueError, match="distortion=Squared is no likelihood"):
        model().log_likelihood(x, z)


def test_what_is_measured_over_a_split_does_not_depend_on_the_batches():
    codec, x = model(), images(10)
    whole = codec.summarize(codec.statistics(x))
    one, two = codec.statistics(x[:3]), codec.statistics(x[3:])
    parts = codec.summarize({name: one[name] + two[name] for name in one})
    assert parts == pytest.approx(whole)
    a, b = x.double() / 16, codec.reconstruct(x).double() / 16
    assert whole["mse"] == pytest.approx(float((a - b).square().mean()))
    assert whole["normalized_mse"] == pytest.approx(float((a - b).square().mean() / a.var(correction=0)))
    by_image = -10 * (a - b).square().mean((1, 2, 3)).log10()
    assert whole["psnr"] == pytest.approx(float(by_image.mean()))
    codes = codec.encode(x).unique()
    assert whole["codebook_use"] == len(codes) / 8


def slow_ssim(a, b):
    """Wang et al. 2004, window after window."""
    t = torch.arange(11).double() - 5
    w = (-(t[:, None] ** 2 + t**2) / (2 * 1.5**2)).exp()
    w = w / w.sum()
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            m, n = (w * p).sum(), (w * q).sum()
            s, t, c = (w * (p - m) ** 2).sum(), (w * (q - n) ** 2).sum(), (w * (p - m) * (q - n)).sum()
            values.append((2 * m * n + 1e-4) * (2 * c + 9e-4) / ((m**2 + n**2 + 1e-4) * (s + t + 9e-4)))
    return torch.stack(values).mean()


def test_ssim_is_the_papers():
    torch.manual_seed(0)
    a, b = torch.rand(2, 3, 14, 13, dtype=torch.float64), torch.rand(2, 3, 14, 13, dtype=torch.float64)
    for i in range(2):
        expected = torch.stack([slow_ssim(p, q) for p, q in zip(a[i], b[i])]).mean()
        torch.testing.assert_close(ssim(a, b)[i], expected)
    torch.testing.assert_close(ssim(a, a), torch.ones(2).double())
    grey, light = torch.full_like(a, 0.2), torch.full_like(a, 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    torch.testing.assert_close(ssim(grey, light), torch.full((2,), expected).double())
    assert ssim(torch.rand(1, 1, 8, 6), torch.rand(1, 1, 8, 6)).shape == (1,)  # a window of 7 x 5


def test_psnr_is_in_decibels():
    a = torch.zeros(2, 1, 3, 3)
    torch.testing.assert_close(psnr(a, a + 0.1), torch.full((2,), 20.0))
    torch.testing.assert_close(mse(a, a + 0.1), torch.full((2,), 0.01))
    assert (psnr(a, a) == 100).all()


@pytest.mark.parametrize("policy", ["full", "sqrt", "selective"])
def test_recomputation_changes_nothing_and_counts_once(policy):
    found = []
    for chosen in ("none", policy):
        codec = model(quantizer=partial(VectorQuantizer, levels=8, codebook=EMACodebook))
        checkpoint_blocks(codec, chosen)
        terms = codec.loss(images())
        terms["loss"].backward()
        gathered = codec.quantizer.codebook.gathered
        codec.at(1)
        grads = [p.grad for p in codec.parameters()]
        found.append([terms["loss"].detach(), *gathered, codec.quantizer.codebook.weight, *grads])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert found[0][1].sum() == 6 * 2 * 3


def test_only_steps_move_the_codebook_and_its_state_is_all_there_is():
    """A model whose state was stored between two steps goes on as the one that it was taken from."""

    def step(codec, optimizer, n, x):
        optimizer.zero_grad()
        codec.loss(x)["loss"].backward()
        optimizer.step()
        codec.at(n)

    quantizer = partial(VectorQuantizer, levels=8, codebook=partial(EMACodebook, revive=0.5))
    batches = [images(4) + k for k in range(4)]
    codec, again = model(quantizer=quantizer), model(quantizer=quantizer)
    optimizer = torch.optim.SGD(codec.parameters(), lr=0.1)
    for n, x in enumerate(batches, 1):
        step(codec, optimizer, n, x)
        before = codec.quantizer.codebook.weight.clone()
        codec.eval().loss(x)
        codec.train().at(n)
        assert torch.equal(codec.quantizer.codebook.weight, before)
        if n == 2:
            again.load_state_dict(codec.state_dict())
            again.at(2)
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
    for n in (3, 4):
        step(again, optimizer, n, batches[n - 1])
    assert all(torch.equal(a, b) for a, b in zip(codec.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("quantizer", [partial(VectorQuantizer, levels=8), partial(FSQ, sizes=[5, 4, 3, 3])])
def test_half_precision_trains(quantizer):
    codec, x = model(quantizer=quantizer), images()
    whole = codec.loss(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = codec.loss(x)
    half["loss"].backward()
    assert all(p.grad.isfinite().all() for p in codec.parameters())
    assert half["loss"].dtype == torch.float32
    for name in whole:
        assert half[name].item() == pytest.approx(whole[name].item(), rel=0.05, abs=0.02)


def test_more_codes_leave_less_error():
    x = images(32, shape=(1, 8, 8))
    x = torch.nn.functional.interpolate(x[..., ::4, ::4].float(), scale_factor=4).to(torch.uint8)
    errors = []
    for quantizer in (
        partial(VectorQuantizer, levels=2),
        partial(ResidualVQ, depth=3, layer=partial(VectorQuantizer, levels=16)),
    ):
        codec = model(shape=(1, 8, 8), quantizer=quantizer)
        codec.prepare([{"x": x}])
        optimizer = torch.optim.Adam(codec.parameters(), lr=1e-2)
        for _ in range(80):
            optimizer.zero_grad()
            codec.loss(x)["loss"].backward()
            optimizer.step()
        errors.append(codec.summarize(codec.eval().statistics(x))["normalized_mse"])
    assert errors[1] < 0.8 * errors[0] < 0.8


def test_the_command_trains_one_and_tells_its_errors(tmp_path):
    words = [
        "model=vqvae",
        "encoder.widths=[4,8]",
        "model.dim=4",
        "quantizer=ema",
        "quantizer.levels=8",
    ]
    done = commands.train(tmp_path, *words)
    assert done.code == 0, done.err
    results = json.loads((commands.only(tmp_path) / "results.json").read_text())
    told = {number["name"]: number["value"] for number in results["numbers"]}
    assert {"mse", "psnr", "ssim", "normalized_mse", "codebook_use", "codebook_perplexity"} <= set(told)
    assert 1 <= told["codebook_perplexity"] <= 8
    assert all(math.isfinite(value) for value in told.values())


def test_a_run_with_moving_entries_goes_on_exactly_where_it_stopped(tmp_path):
    words = [
        "model=vqvae",
        "encoder.widths=[4,8]",
        "model.dim=4",
        "quantizer=revived",
        "quantizer.levels=8",
    ]
    more = ["trainer.max_steps=6", "keep=null", "trainer.accumulate_grad_batches=2"]
    done = commands.train(tmp_path, *words, *more, "quantizer.codebook.decay=0.5")
    assert done.code == 0, done.err
    run = Run(commands.only(tmp_path))
    last = run.checkpoints / "step-00000006.ckpt"
    unbroken = checkpoint_files.load(last)["state_dict"]
    for path in run.checkpoints.iterdir():
        if path.name != "step-00000002.ckpt":
            path.unlink()
    run.write_results(run.results | {"status": "stopped"})
    done = commands.run("train", f"resume={run.folder}")
    assert "goes on from step-00000002.ckpt" in done.out, done.err
    resumed = checkpoint_files.load(last)["state_dict"]
    assert all(torch.equal(value, resumed[name]) for name, value in unbroken.items())
