"""The KL autoencoder alone and between two players; and two processes that play as one."""

import json
import math
from functools import partial

import commands
import pytest
import torch
from torch.distributions import Normal, kl_divergence

import zoo
from zoo.models import VQGAN, VQVAE, KLAutoencoder
from zoo.nn import (
    Absolute,
    Categorical,
    EMACodebook,
    FeatureNet,
    FieldDecoder,
    FieldEncoder,
    PatchCritic,
    VectorQuantizer,
)
from zoo.nn.perceptual import feature_distance
from zoo.training.optimizers import grouped
from zoo.types import Codec, Density, Sampler, Space, Unfit, can

SMALL = {
    "encoder": partial(FieldEncoder, widths=[4, 8], depth=1),
    "decoder": partial(FieldDecoder, widths=[4, 8], depth=1),
}
WORDS = (
    "model=kl_autoencoder",
    "encoder.widths=[4,8]",
    "model.critic.width=4",
    "perceptual=none",
    "model.start=2",
)


def autoencoder(**options):
    torch.manual_seed(0)
    return KLAutoencoder(**{"shape": (1, 8, 8), "levels": 17, "dim": 3, **SMALL, **options})


def images(n=6):
    return torch.randint(17, (n, 1, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_the_loss_is_the_papers_over_the_elements_of_an_image():
    """sum |x - x^| + 1e-6 KL, divided by C H W."""
    model, x = autoencoder(kl_weight=0.1).double(), images()
    terms = model.loss(x)
    mu, lv = model.posterior(x)
    kl = kl_divergence(Normal(mu, (lv / 2).exp()), Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.manual_seed(0)
    z = mu + (lv / 2).exp() * torch.randn_like(mu)
    summed = (model.decoder(z) - (x / 8 - 1.0)).abs().flatten(1).sum(1) + 0.1 * kl
    torch.manual_seed(0)
    torch.testing.assert_close(model.loss(x)["loss"], summed.mean() / 64)
    torch.testing.assert_close(terms["kl"], 0.1 * kl.mean() / 64)


def test_latents_are_the_mode_or_a_draw_by_choice():
    model, x = autoencoder().eval(), images()
    mu, lv = model.posterior(x)
    assert model.latent == Space((3, 2, 2))
    assert torch.equal(model.encode(x), mu)
    torch.manual_seed(0)
    draws = torch.stack([model.encode(x, draw=True) for _ in range(2000)])
    torch.testing.assert_close(draws.mean(0), mu, atol=0.15, rtol=0)
    torch.testing.assert_close(draws.std(0), (lv / 2).exp(), atol=0.15, rtol=0.1)
    back = model.decode(mu)
    assert back.shape == x.shape
    assert back.dtype == torch.uint8
    assert torch.equal(model.reconstruct(x), back)


def test_validation_draws_nothing():
    model, x = autoencoder().eval(), images()
    losses = {model.loss(x)["loss"].item() for _ in range(3)}
    assert len(losses) == 1
    model.train()
    assert len({model.loss(x)["loss"].item() for _ in range(3)}) == 3


def test_it_tells_errors_kl_and_the_size_of_latents():
    model, x = autoencoder().eval(), images()
    one, two = model.statistics(x[:2]), model.statistics(x[2:])
    told = model.summarize({name: one[name] + two[name] for name in one})
    mu, lv = model.posterior(x)
    assert told["mse"] == pytest.approx(float((x / 16 - model.decode(mu) / 16).square().mean()))
    kl = kl_divergence(Normal(mu, (lv / 2).exp()), Normal(0.0, 1.0)).flatten(1).sum(1).mean()
    assert told["kl"] == pytest.approx(kl.item(), rel=1e-5)
    assert told["latent_deviation"] == pytest.approx(mu.std(correction=0).item(), rel=1e-5)


def test_it_codes_and_claims_no_more():
    model = autoencoder()
    assert can(model, Codec)
    assert not can(model, Density)
    assert not can(model, Sampler)
    with pytest.raises(Unfit, match="codes images of integers"):
        autoencoder(shape=(7,), levels=None)
    with pytest.raises(ValueError, match=r"distortion=zoo\.nn\.Absolute"):
        autoencoder(distortion=Categorical)


class Perceptual(torch.nn.Module):
    """A distance by features of chance."""

    told = "chance"

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.network = FeatureNet(1, 10, widths=(4, 8))

    def forward(self, a, b):
        return feature_distance(self.network, a, b)


def players(first, **options):
    own = {"critic": partial(PatchCritic, width=4, layers=2), "start": 0, "perceptual": Perceptual()}
    torch.manual_seed(0)
    return VQGAN(shape=(1, 8, 8), levels=17, autoencoder=first, **{**own, **options})


def test_each_player_sees_only_its_own_term():
    gan, x = players(partial(KLAutoencoder, dim=3, kl_weight=0.1, **SMALL)).double().train(), images()
    torch.manual_seed(2)
    gan.loss(x)["loss"].backward()
    torch.manual_seed(2)
    terms = gan.loss(x)
    own = terms["reconstruction"] + terms["perceptual"] + terms["kl"] + terms["lambda"] * terms["generator"]
    for term, player in ((own, gan.autoencoder), (terms["critic"], gan.critic)):
        parameters = list(player.parameters())
        for parameter, grad in zip(
            parameters, torch.autograd.grad(term, parameters, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(parameter.grad, grad)
    assert gan.latent == Space((3, 2, 2))
    assert torch.equal(gan.eval().encode(x), gan.autoencoder.encode(x))
    assert not torch.equal(gan.encode(x, draw=True), gan.encode(x))
    assert len(grouped(gan, [{"match": r"^critic\.", "lr": 1e-4}])) == 2


def test_one_command_trains_it(tmp_path):
    done = commands.train(tmp_path, *WORDS)
    assert done.code == 0, done.err
    found = json.loads((commands.only(tmp_path) / "results.json").read_text())["numbers"]
    told = {number["name"]: number["value"] for number in found}
    assert {"mse", "psnr", "ssim", "kl", "latent_deviation"} <= set(told)
    assert all(map(math.isfinite, told.values()))
    codec = zoo.load(commands.only(tmp_path))
    assert codec.encode(images()).shape == (6, 4, 2, 2)


FIRST = {
    "vqvae": partial(
        VQVAE,
        dim=4,
        distortion=Absolute,
        normalize=False,
        quantizer=partial(VectorQuantizer, levels=8, codebook=EMACodebook),
        **SMALL,
    ),
    # without chance: where it is drawn for one batch or two halves is the learner's affair
    "kl_autoencoder": partial(KLAutoencoder, dim=3, kl_weight=0.1, **SMALL),
}


def trained(kind, rank=None):
    """Two steps on 8 images, or on one rank's half of them; all that the model then is, and what it lost."""
    gan = players(FIRST[kind]).double().train()
    if kind == "vqvae":
        torch.nn.init.normal_(
            gan.autoencoder.quantizer.codebook.weight, generator=torch.Generator().manual_seed(3)
        )
        book = gan.autoencoder.quantizer.codebook
        book.place(book.weight.clone(), torch.ones(8))
    else:
        gan.autoencoder.eval()

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gan = gan

        def forward(self, x):
            return gan.loss(x)

    model = Loss()
    if rank is not None:
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD((p for p in gan.parameters() if p.requires_grad), lr=0.05)
    lambdas = []
    for step in range(2):
        gan.at(step)
        x = images(16)[8 * step : 8 * step + 8]
        x = x if rank is None else x[4 * rank : 4 * rank + 4]
        terms = model(x)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        lambdas.append(terms["lambda"].detach())
    gan.at(2)
    return {**gan.state_dict(), "lambdas": torch.stack(lambdas)}


def one_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({kind: trained(kind, rank) for kind in FIRST}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_play_as_one_with_the_whole_batch(tmp_path):
    """Weights, codebook and lambda, which is of the gradients of the whole batch and not of a rank's part."""
    torch.multiprocessing.spawn(one_rank, args=(str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for kind in FIRST:
        for name, value in trained(kind).items():
            assert torch.equal(one[kind][name], two[kind][name]), name
            torch.testing.assert_close(one[kind][name], value, rtol=1e-6, atol=1e-7)
