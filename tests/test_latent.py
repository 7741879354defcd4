"""Two stages: a frozen codec, a prior over its latents, and a run's folder that has both."""

import csv
import inspect
import json
import shutil
from functools import partial
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from conftest import composed
from torch import nn

import zoo
from zoo.evaluation import completion, options_in_force
from zoo.jobs import data as jobs_data
from zoo.jobs.compose import plain
from zoo.jobs.latents import Encoded, encode_once
from zoo.loading import stages
from zoo.models import VAE, VQVAE, Autoregressive, GatedPixelCNN, Latent, PixelCNN
from zoo.nn import (
    Attention,
    Bernoulli,
    Categorical,
    EMACodebook,
    FieldDecoder,
    FieldEncoder,
    Mamba,
    ResidualVQ,
    Rotary2D,
    VectorQuantizer,
)
from zoo.runs import Run, find, runs
from zoo.types import Density, Measured, Sampler, Space, Unfit, can

CPU = torch.device("cpu")
STAGE = ("model=vqvae", "encoder.widths=[4,8]", "model.dim=4", "quantizer=ema", "quantizer.levels=8")
PRIOR = ("model=code_prior", "model.prior.dim=8", "model.prior.depth=1", "mixer.heads=2")


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """The folder of a finished first stage: a small VQ-VAE on digits."""
    folder = tmp_path_factory.mktemp("stage")
    done = commands.train(folder, *STAGE)
    assert done.code == 0, done.err
    return commands.only(folder)


@pytest.fixture(scope="module")
def second(stage, tmp_path_factory):
    """The folder of a finished second stage, trained with labels; its first one is no longer where it was."""
    folder = tmp_path_factory.mktemp("second")
    moved = Path(shutil.copytree(stage, folder / "first" / stage.name))
    words = [*PRIOR, "model.prior.conditional=true", f"model.codec.run={moved}"]
    done = commands.train(folder / "runs", *words)
    assert done.code == 0, done.err
    shutil.rmtree(moved)
    return commands.only(folder / "runs")


def codec(**options):
    torch.manual_seed(0)
    small = {
        "dim": 3,
        "encoder": partial(FieldEncoder, widths=[4], depth=1),
        "decoder": partial(FieldDecoder, widths=[4], depth=1),
        "quantizer": partial(VectorQuantizer, levels=4),
    }
    made = VQVAE(**{"shape": (1, 2, 2), "levels": 2, **small, **options})
    for layer in getattr(made.quantizer, "layers", [made.quantizer]):
        nn.init.normal_(layer.codebook.weight)
    return made


def pair(first=None, **options):
    first = first or codec()
    prior = partial(Autoregressive, dim=8, depth=1, mixer=partial(Attention, heads=2), **options)
    return Latent(shape=first.shape, levels=first.levels, codec=first, prior=prior)


def test_the_first_stage_is_what_it_was_after_the_second_was_trained(stage, second):
    first, both = zoo.load(stage), zoo.load(second, weights="last")
    for name, value in first.state_dict().items():
        assert torch.equal(both.codec.state_dict()[name], value), name
    assert not any(module.training for module in both.train().codec.modules())
    assert both.prior.training
    assert not any(parameter.requires_grad for parameter in both.codec.parameters())
    told = json.loads((second / "results.json").read_text())
    assert told["parameters"] == sum(p.numel() for p in both.prior.parameters())
    protocol = told["numbers"][0]["protocol"]
    assert protocol["first_stage"].startswith(
        json.loads((stage / "identity.json").read_text())["identity"][:12]
    )


def test_a_second_stage_stands_alone(stage, second, tmp_path):
    """Its first one is gone, and it may be moved itself: it loads, samples, and is finished when it is resumed."""
    moved = Path(shutil.copytree(second, tmp_path / "runs" / "elsewhere"))
    x = zoo.load(moved).sample(3, torch.tensor([1, 2, 3]))
    assert x.shape == (3, 1, 8, 8)
    assert x.dtype == torch.uint8
    done = commands.run("train", f"resume={moved}")
    assert done.code == 0, done.err
    assert "finished already" in done.out
    done = commands.run("train", f"resume={moved}", "rerun=true", "trainer.enable_progress_bar=false")
    assert done.code == 0, done.err
    before, after = (dict(lines(folder)) for folder in (second, moved))
    assert before == after
    done = commands.run("evaluate", f"run={moved}", "splits=[val]", "n=2")
    assert done.code == 0, done.err


def lines(folder):
    with open(folder / "metrics.csv") as file:
        return [(tuple(line[:2]), line[2]) for line in csv.reader(file) if "per_second" not in line[1]]


def test_its_folder_has_the_first_stage_once_and_without_moments(stage, second):
    config = Run.open(second).config
    ((place, _),) = stages(config)
    home = second / "stages" / place
    (checkpoint,) = (home / "checkpoints").iterdir()
    content = torch.load(checkpoint, weights_only=True)
    assert set(content) == {"state_dict", "place"}
    assert Run(home).identity == Run(stage).identity
    assert [run.folder for run in runs(second.parent)] == [second]  # a first stage inside of a run is none
    assert find(second.parent, Run(stage).identity) is None


def test_another_first_stage_is_another_experiment(stage, second, tmp_path):
    other = Path(shutil.copytree(stage, tmp_path / stage.name))
    (other / "identity.json").write_text(json.dumps({"identity": "f" * 64}))
    words = [*PRIOR, "model.prior.conditional=true"]
    done = commands.train(tmp_path / "runs", *words, f"model.codec.run={stage}")
    assert (
        Run(commands.only(tmp_path / "runs")).identity == Run(second).identity
    )  # where it lies is no matter
    shutil.rmtree(tmp_path / "runs")
    done = commands.train(tmp_path / "runs", *words, f"model.codec.run={other}")
    assert done.code == 0, done.err
    assert Run(commands.only(tmp_path / "runs")).identity != Run(second).identity


def test_missing_and_unfit_first_stages_are_told_in_a_sentence(stage, tmp_path):
    done = commands.train(tmp_path, *PRIOR)
    assert "missing: model.codec.run" in done.err
    done = commands.train(tmp_path, *PRIOR, "model.codec.run=nowhere")
    assert "nowhere" in done.err
    assert len(done.err.splitlines()) == 1
    done = commands.train(tmp_path, *PRIOR, f"model.codec.run={stage}", "dataset=shapes")
    assert "the first stage was trained on shape=[1, 8, 8] with levels=17" in done.err
    assert "datasets that fit: digits" in done.err


def prepared(stage, *words):
    config = plain(composed("train", *PRIOR, f"model.codec.run={stage}", "batch_size=32", *words))
    data = jobs_data.loaders(config)
    prior = partial(Autoregressive, dim=8, depth=1, mixer=partial(Attention, heads=2))
    return Latent(shape=(1, 8, 8), levels=17, codec=zoo.pretrained(stage), prior=prior), data


def test_kept_latents_are_those_encoded_anew(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path))
    model, data = prepared(stage)
    encode_once(model, data, 10_000, CPU)
    assert len(list(tmp_path.rglob("*.npy"))) == 2
    for split in ("train", "val"):
        for batch in data.loader(split, 50):
            assert batch["z"].dtype == torch.int64
            assert torch.equal(batch["z"], model.codes(batch["x"]))
            assert model.loss(**batch)["loss"] == model.loss(batch["x"], batch["y"])["loss"]
            statistics = model.statistics(**batch)
            assert torch.equal(statistics["right"], model.statistics(batch["x"])["right"])
    assert data.dataset("train").fingerprint
    again, data = prepared(stage)
    monkeypatch.setattr(again, "codes", None)  # whoever encodes fails
    encode_once(again, data, 10_000, CPU)
    assert torch.equal(data.dataset("val")[torch.arange(5)]["z"], batch_of(model, data, 5))
    other, data = prepared(stage)
    other.codec.origin = "another"
    encode_once(other, data, 10_000, CPU)
    assert len(list(tmp_path.rglob("*.npy"))) == 4
    whole = next(tmp_path.rglob("*.npy"))
    np.save(whole, np.zeros((2, 2)))  # of another shape: made anew, not believed
    again, data = prepared(stage)
    encode_once(again, data, 10_000, CPU)
    for split in ("train", "val"):
        batch = data.dataset(split)[torch.arange(9)]
        assert torch.equal(batch["z"], model.codes(batch["x"]))


def batch_of(model, data, n):
    return model.codes(data.dataset("val")[torch.arange(n)]["x"])


def test_latents_are_kept_only_where_that_saves_something_and_changes_nothing(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path))
    model, data = prepared(stage)
    encode_once(model, data, 2000, CPU)  # less than two epochs
    assert "z" not in data.dataset("train")[torch.arange(2)]
    train = data.dataset("train")

    class Noisy:
        def __len__(self):
            return len(train)

        def __getitem__(self, indices):
            batch = train[indices]
            return {**batch, "x": batch["x"].where(torch.rand(8, 8) < 0.9, 0)}

    data.replace("train", Noisy())
    encode_once(model, data, 10_000, CPU)
    assert not isinstance(data.dataset("train"), Encoded)
    assert isinstance(data.dataset("val"), Encoded)


def test_training_on_kept_latents_is_training_on_fresh_ones(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path / "cache"))
    words = [*PRIOR, f"model.codec.run={stage}", "trainer.max_steps=40", "trainer.val_check_interval=20"]
    assert commands.train(tmp_path / "kept", *words).code == 0
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2
    monkeypatch.setattr("zoo.jobs.train.encode_once", lambda *_: None)
    assert commands.train(tmp_path / "fresh", *words).code == 0
    kept, fresh = (commands.only(tmp_path / name) for name in ("kept", "fresh"))
    assert lines(kept) == lines(fresh)


@pytest.mark.parametrize("distortion", [Bernoulli, Categorical])
def test_the_pair_bounds_log_p(distortion):
    model = pair(codec(distortion=distortion, normalize=False)).double().eval()
    every = torch.cartesian_prod(*[torch.arange(2)] * 4).view(16, 1, 2, 2).to(torch.uint8)
    bound = model.log_prob(every)
    codes = torch.arange(4).view(4, 1, 1, 1)
    prior = model.prior.log_prob(codes)
    exact = torch.stack(
        [model.codec.log_likelihood(every, code.expand(16, 1, 1, 1)) + p for code, p in zip(codes, prior)]
    ).logsumexp(0)
    torch.testing.assert_close(exact.exp().sum(), torch.ones(()).double())
    assert (bound <= exact + 1e-9).all()
    assert bound.exp().sum() < 1
    assert model.kind == "lower bound"
    assert can(model, Density)
    assert "bound" in model.protocol
    terms = model.loss(every)
    torch.testing.assert_close(terms["nats"], -bound.mean())
    assert "nats" not in model.train().loss(every)


def test_without_a_likelihood_there_is_no_bound():
    model = pair().eval()
    assert not can(model, Density)
    assert can(model, Sampler)
    assert can(model, Measured)
    terms = model.loss(torch.zeros(3, 1, 2, 2, dtype=torch.uint8))
    assert "latent_nats" in terms
    assert "nats" not in terms
    assert "bound" not in model.protocol


def test_the_options_of_sample_are_the_priors():
    model = pair()
    own, theirs = (inspect.signature(part.sample) for part in (model, model.prior))
    assert own == theirs
    assert options_in_force(model.sample, {"temperature": 0.5}, "sample")["temperature"] == 0.5
    x = model.eval().sample(5, temperature=0)
    assert (x == x[0]).all()
    assert x.shape == (5, 1, 2, 2)


def test_the_order_is_told_of_the_latent_and_half_an_image_is_no_beginning_of_it():
    """A prompt of 128 grey pixels would be taken for the first 128 of 256 codes."""
    quantizer = partial(ResidualVQ, depth=4, layer=partial(VectorQuantizer, levels=32))
    first = VQVAE(
        shape=(1, 16, 16), levels=17, quantizer=quantizer, encoder=partial(FieldEncoder, widths=[4])
    )
    facts = {"name": "these", "kind": "image", "shape": [1, 16, 16], "levels": 17}
    model = Latent(shape=(1, 16, 16), levels=17, codec=first, prior=partial(PixelCNN, dim=4, head=4, depth=1))
    assert model.protocol["order"] == "row, column, channel of the latent"
    with pytest.raises(ValueError, match="reads an image in another order"):
        completion.check(model, "top", facts)


def test_labels_reach_the_prior():
    model = pair(classes=3, conditional=True).eval()
    assert model.conditional
    x = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="needs y"):
        model.loss(x)
    zero, one = (model.loss(x, torch.full((4,), y))["loss"] for y in (0, 1))
    assert zero != one


def test_no_gradient_and_no_codebook_moves_in_the_first_stage():
    first = codec(quantizer=partial(VectorQuantizer, levels=4, codebook=EMACodebook))
    model = pair(first)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(1, 4):
        model.train().loss(torch.randint(2, (8, 1, 2, 2)).to(torch.uint8))["loss"].backward()
        optimizer.step()
        if hasattr(model.prior, "at"):
            model.at(step)
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())
    assert all(p.grad is None for p in first.parameters())


def test_half_precision_of_the_second_stage_changes_no_code():
    model, x = pair(), torch.randint(2, (64, 1, 2, 2)).to(torch.uint8)
    codes = model.codes(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.codes(x), codes)
        assert model.loss(x)["loss"].isfinite()


class Normal(nn.Module):
    """A prior of real latents: independent normal numbers."""

    def __init__(self, *, shape, levels):
        super().__init__()
        assert levels is None
        self.mean = nn.Parameter(torch.zeros(shape))
        self.seen = None

    def loss(self, x, y=None):
        return {"loss": (x - self.mean).square().mean()}

    def sample(self, n, y=None, *, temperature=1.0):
        return self.mean + temperature * torch.randn(n, *self.mean.shape)

    def prepare(self, batches):
        self.seen = torch.cat([batch["x"] for batch in batches])


def test_real_latents_are_brought_to_mean_0_and_variance_1():
    torch.manual_seed(0)
    first = VAE(shape=(1, 8, 8), levels=2, latent=3)
    model = Latent(shape=(1, 8, 8), levels=2, codec=first, prior=Normal)
    x = torch.randint(2, (200, 1, 8, 8)).to(torch.uint8)
    model.prepare({"x": part} for part in x.split(64))
    z = model.scaled(model.codes(x))
    assert z.shape == (200, 3)
    assert abs(z.mean()) < 1e-5
    assert z.std(correction=0) == pytest.approx(1)
    assert torch.equal(model.prior.seen, z) or torch.allclose(model.prior.seen, z, atol=1e-5)
    back = model.eval().sample(4, temperature=0.0)
    assert torch.equal(back, first.decode(model.shift.expand(4, 3)))
    assert not can(model, Density)


def test_data_that_the_codec_does_not_know_are_refused():
    with pytest.raises(Unfit, match="first stage was trained on") as refused:
        Latent(shape=(1, 4, 4), levels=2, codec=codec(), prior=Normal)
    assert refused.value.fits(Space((1, 2, 2), 2))
    assert not refused.value.fits(Space((1, 4, 4), 2))


@pytest.mark.parametrize(
    "prior",
    [
        partial(Autoregressive, dim=8, depth=1, mixer=partial(Mamba, state=4)),
        partial(Autoregressive, dim=8, depth=1, mixer=partial(Attention, heads=2), position=Rotary2D),
        partial(PixelCNN, dim=4, head=4, depth=1),
        partial(GatedPixelCNN, dim=4, head=4, depth=2, embed=3),
    ],
    ids=["mamba", "rotary in two dimensions", "pixelcnn", "gated pixelcnn"],
)
@pytest.mark.parametrize("depth", [1, 2])
def test_any_model_of_integers_is_a_prior(prior, depth):
    quantizer = partial(ResidualVQ, depth=2, layer=partial(VectorQuantizer, levels=4))
    first = codec(shape=(1, 4, 6), **({"quantizer": quantizer} if depth == 2 else {}))
    model = Latent(shape=(1, 4, 6), levels=2, codec=first, prior=prior).eval()
    assert first.latent == Space((depth, 2, 3), 4)
    x = torch.randint(2, (3, 1, 4, 6)).to(torch.uint8)
    model.loss(x)["loss"].backward()
    torch.testing.assert_close(model.loss(x)["latent_nats"], -model.prior.log_prob(model.codes(x)).mean())
    one, two = model.statistics(x[:1]), model.statistics(x[1:])
    told = model.summarize({name: one[name] + two[name] for name in one})
    assert told["latent_nats"] == pytest.approx(model.loss(x)["latent_nats"].item(), rel=1e-5)
    drawn = model.sample(2)
    assert drawn.shape == (2, 1, 4, 6)
    assert drawn.max() < 2
