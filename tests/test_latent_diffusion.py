"""Latent diffusion: a first stage's real latents, kept or fresh, a diffusion of them, and its samples decoded."""

import json
import math
import shutil
from functools import partial

import commands
import numpy as np
import pytest
import torch
from conftest import composed

import zoo
from zoo.evaluation import options_in_force, told
from zoo.jobs import data as jobs_data
from zoo.jobs.compose import plain
from zoo.jobs.latents import encode_once
from zoo.models import (
    VAE,
    VQGAN,
    VQVAE,
    Autoregressive,
    Diffusion,
    ImageClassifier,
    KLAutoencoder,
    Latent,
)
from zoo.models.unquantized import Unquantized
from zoo.nn import (
    Absolute,
    Attention,
    FieldDecoder,
    FieldEncoder,
    PatchCritic,
    TimeMLP,
    UNet,
    VectorQuantizer,
)
from zoo.types import Codec, Density, Sampler, Space, can

CPU = torch.device("cpu")
SMALL = {
    "encoder": partial(FieldEncoder, widths=[4, 8], depth=1),
    "decoder": partial(FieldDecoder, widths=[4, 8], depth=1),
}
SMALL_UNET = partial(UNet, dim=8, mult=(1, 2), depth=1, attention=())
CODES = {
    "distortion": Absolute,
    "normalize": False,
    "dim": 5,
    "quantizer": partial(VectorQuantizer, levels=8),
    **SMALL,
}
STAGES = {
    "vqgan": (
        "model=vqgan",
        "encoder.widths=[4,8]",
        "model.autoencoder.dim=4",
        "model.critic.width=4",
        "perceptual=none",
        "quantizer.levels=8",
    ),
    "kl_autoencoder": (
        "model=kl_autoencoder",
        "encoder.widths=[4,8]",
        "model.critic.width=4",
        "perceptual=none",
    ),
    "vae": commands.VAE,
}
PRIOR = ("model=latent_diffusion", "evaluate.sample.steps=2")
UNET = ("backbone.dim=8", "backbone.depth=1")
MLP = ("backbone=mlp", "backbone.width=16", "backbone.depth=1")


def images(n=6):
    return torch.randint(17, (n, 1, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def coded(**options):
    torch.manual_seed(0)
    made = VQVAE(shape=(1, 8, 8), levels=17, **{**CODES, **options})
    torch.nn.init.normal_(made.quantizer.codebook.weight)
    return made.eval()


def pair(codec, backbone=SMALL_UNET, **options):
    prior = partial(Diffusion, backbone=backbone)
    return Latent(shape=(1, 8, 8), levels=17, codec=codec, prior=prior, **options)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The folders of finished first stages, and of a classifier beside them."""
    runs = tmp_path_factory.mktemp("runs")
    for name, words in STAGES.items():
        done = commands.train(runs, *words, f"name={name}")
        assert done.code == 0, done.err
    words = ["dataset=digits", "model.widths=[4,8]", *commands.TINY, f"runs={runs}"]
    done = commands.run("scripts/prepare", "features", *words)
    assert done.code == 0, done.err
    return runs


def run_of(folder, name):
    (found,) = folder.glob(f"{name}-*")
    return found


@pytest.mark.parametrize("wrapped", [False, True], ids=["vqvae", "vqgan"])
def test_vectors_before_the_quantizer_are_a_codec(wrapped):
    first, x = coded(), images()
    if wrapped:
        critic = partial(PatchCritic, width=4, layers=2)
        both = VQGAN(shape=(1, 8, 8), levels=17, autoencoder=partial(VQVAE, **CODES), critic=critic).eval()
        both.autoencoder.load_state_dict(first.state_dict())
        first = both
    codec = Unquantized(first)
    z = codec.encode(x)
    assert codec.latent == Space((5, 2, 2))
    assert z.shape == (6, 5, 2, 2)
    assert z.is_floating_point()
    assert torch.equal(codec.decode(z), first.reconstruct(x))  # the decoder quantizes
    assert can(codec, Codec)


def test_a_codec_without_vectors_is_refused_in_words():
    class Codes(torch.nn.Module):
        shape, levels, latent = (1, 8, 8), 17, Space((4,), 3)
        encode = decode = torch.nn.Module.forward

    with pytest.raises(ValueError, match=r"Codes has codes, and no vectors .* vqvae or a vqgan"):
        pair(Codes(), unquantized=True)


@pytest.mark.parametrize("unquantized", [False, True])
def test_real_latents_are_taken_as_they_are(unquantized):
    first = KLAutoencoder(shape=(1, 8, 8), levels=17, **SMALL)
    model = pair(first, unquantized=unquantized)
    assert model.codec is first
    assert model.prior.shape == first.latent.shape == (4, 2, 2)
    assert model.prior.levels is None


def test_a_prior_that_is_for_other_latents_says_which_fit():
    vectors = VAE(shape=(1, 8, 8), levels=17, latent=3)
    with pytest.raises(ValueError, match=r"real numbers of shape=\[3\].*backbone=mlp") as refused:
        pair(vectors)
    assert not hasattr(refused.value, "fits")  # it is not the data that do not fit
    model = pair(vectors, partial(TimeMLP, width=8, depth=1))
    assert model.eval().sample(2, steps=2).shape == (2, 1, 8, 8)
    codes = partial(Autoregressive, dim=8, depth=1, mixer=partial(Attention, heads=2))
    with pytest.raises(ValueError, match="code_prior takes codes"):
        Latent(shape=(1, 8, 8), levels=17, codec=vectors, prior=codes)


def test_the_prior_sees_latents_of_mean_0_and_variance_1_and_samples_are_decoded():
    torch.manual_seed(0)
    model, x = pair(coded(), unquantized=True), images(200)
    model.prepare({"x": part} for part in x.split(64))
    z = model.scaled(model.codes(x))
    assert abs(z.mean()) < 1e-5
    assert z.std(correction=0) == pytest.approx(1, abs=1e-5)
    torch.manual_seed(1)
    drawn = model.eval().sample(3, solver="euler", steps=4)
    torch.manual_seed(1)
    z = model.prior.sample(3, solver="euler", steps=4)
    assert torch.equal(drawn, model.codec.decode(z * model.scale + model.shift))
    assert drawn.dtype == torch.uint8
    assert model.evaluations == 4
    assert can(model, Sampler)
    assert not can(model, Density)  # nats of a latent are none of an image


def test_a_protocol_tells_the_options_that_the_priors_solver_uses():
    model = pair(coded(), unquantized=True)
    force = options_in_force(model.sample, {"solver": "euler", "steps": 3}, "sample")
    kept = {"solver", "steps", "guidance", "shift", "clip", "upsample"}
    assert told(model, force) == {name: force[name] for name in kept}
    assert told(torch.nn.Identity(), force) == force


def test_only_the_prior_learns():
    model, x = pair(coded(), unquantized=True).train(), images()
    before = {name: value.clone() for name, value in model.codec.state_dict().items()}
    model.loss(x)["loss"].backward()
    assert all(p.grad is not None for p in model.prior.parameters())
    assert all(p.grad is None for p in model.codec.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.codec.state_dict().items())
    assert not any(module.training for module in model.codec.modules())


@pytest.mark.parametrize("name", ["kl_autoencoder", "vqgan", "vae"])
def test_kept_latents_are_those_encoded_anew(name, stages, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path))
    config = plain(composed("train", "model=vae", "batch_size=32"))
    data = jobs_data.loaders(config)
    backbone = partial(TimeMLP, width=8, depth=1)
    model = pair(zoo.pretrained(run_of(stages, name)), backbone, unquantized=True)
    encode_once(model, data, 10_000, CPU)
    kept = list(tmp_path.rglob("*.npy"))
    assert len(kept) == 2
    assert all(np.load(path).dtype == np.float32 for path in kept)
    for split in ("train", "val"):
        for batch in data.loader(split, 50):
            torch.testing.assert_close(batch["z"], model.codes(batch["x"]), rtol=1e-4, atol=1e-5)
            torch.manual_seed(0)
            with_it = model.loss(**batch)["loss"]
            torch.manual_seed(0)
            torch.testing.assert_close(with_it, model.loss(batch["x"])["loss"], rtol=1e-4, atol=1e-5)
    assert ("before quantization" in model.codec.origin) == (name == "vqgan")


def test_codes_and_vectors_of_one_stage_are_kept_apart(stages, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path))
    config = plain(composed("train", "model=vae", "batch_size=32"))
    for unquantized in (True, False):
        data = jobs_data.loaders(config)
        codec = zoo.pretrained(run_of(stages, "vqgan"))
        encode_once(
            pair(codec, partial(TimeMLP, width=8, depth=1), unquantized=unquantized), data, 10_000, CPU
        )
        z = data.dataset("val")[torch.arange(3)]["z"]
        assert z.is_floating_point() == unquantized
    assert len(list(tmp_path.rglob("*.npy"))) == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vqgan", (*UNET, "condition=class", "condition.dim=8")),
        ("kl_autoencoder", (*UNET, "ema=0.9")),
        ("vae", MLP),
    ],
)
def test_one_command_trains_it_over_any_first_stage(name, words, stages, tmp_path):
    first = shutil.copytree(run_of(stages, name), tmp_path / "first" / name)
    done = commands.train(tmp_path / "runs", *PRIOR, *words, f"model.codec.run={first}")
    assert done.code == 0, done.err
    shutil.rmtree(first)  # it stands alone
    run = commands.only(tmp_path / "runs")
    shutil.copytree(run_of(stages, "features"), run.parent / "features")
    model = zoo.load(run)
    assert model.scale != 1
    assert model.sample(2, steps=2).shape == (2, 1, 8, 8)
    words = ["metrics=[fid]", "samples=20", "n=0", "sample.solver=heun", "sample.steps=3"]
    words += ["sample.guidance=2.0"] if name == "vqgan" else []
    done = commands.run("evaluate", f"run={run}", *words)
    assert done.code == 0, done.err
    if name == "vae":
        done = commands.run("scripts/sample", f"run={run}", "along=3", "n=2", "sample.steps=2")
        assert done.code == 0, done.err
        assert (run / "samples" / "along.png").exists()
    numbers = json.loads((run / "results.json").read_text())["numbers"]
    (told,) = (number for number in numbers if number["name"] == "fid_zoo")
    assert math.isfinite(told["value"])
    protocol = told["protocol"]
    assert (protocol["solver"], protocol["steps"], protocol["samples"]) == ("heun", 3, 20)
    assert protocol["nfe"] >= 5
    assert "weights at step" in protocol["first_stage"]
    assert told["weights"]["averaged"] == (name == "kl_autoencoder")
    if name == "vqgan":
        assert protocol["guidance"] == 2.0
        assert protocol["labels"] == "those of images of train"


def test_an_unfit_backbone_is_one_sentence(stages, tmp_path):
    done = commands.train(tmp_path, *PRIOR, *UNET, f"model.codec.run={run_of(stages, 'vae')}")
    assert done.code == 1
    assert len(done.err.strip().splitlines()) == 1
    assert "backbone=mlp" in done.err
    done = commands.train(tmp_path, *PRIOR, *UNET, f"model.codec.run={run_of(stages, 'features')}")
    assert done.code == 1
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert ImageClassifier.__name__ in done.err
