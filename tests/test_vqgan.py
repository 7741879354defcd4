"""The VQGAN: two players in one loss, the balance between them, and the distances that they play with."""

import json
import math
import shutil
from functools import partial

import commands
import pytest
import torch
from torch import nn

import zoo
from zoo.loading import stages
from zoo.models import VQGAN, VQVAE, ImageClassifier, Latent
from zoo.nn import (
    LPIPS,
    Absolute,
    Categorical,
    EMACodebook,
    FeatureNet,
    FieldDecoder,
    FieldEncoder,
    Hinge,
    NonSaturating,
    PatchCritic,
    VectorQuantizer,
    checkpoint_blocks,
)
from zoo.nn.adversarial import held
from zoo.nn.perceptual import FILES, apart, feature_distance
from zoo.runs import Run
from zoo.training.optimizers import grouped
from zoo.types import Density, can

SMALL = ("encoder.widths=[4,8]", "model.autoencoder.dim=4", "model.critic.width=4")


def autoencoder(**options):
    return partial(
        VQVAE,
        dim=4,
        encoder=partial(FieldEncoder, widths=[4, 8], depth=1),
        decoder=partial(FieldDecoder, widths=[4, 8], depth=1),
        **{
            "quantizer": partial(VectorQuantizer, levels=8),
            "distortion": Absolute,
            "normalize": False,
            **options,
        },
    )


def model(quantizer=None, **options):
    torch.manual_seed(0)
    more = {} if quantizer is None else {"quantizer": quantizer}
    own = {"autoencoder": autoencoder(**more), "critic": partial(PatchCritic, width=4, layers=2), "start": 0}
    made = VQGAN(shape=(1, 8, 8), levels=17, **{**own, **options})
    for book in (m for m in made.modules() if type(m).__name__ == "Codebook"):
        nn.init.normal_(book.weight)
    return made


def classifier():
    torch.manual_seed(1)
    return ImageClassifier(shape=(1, 8, 8), levels=17, classes=10, widths=[4, 8])


def images(n=6):
    return torch.randint(17, (n, 1, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def split(gan):
    """The parameters of the autoencoder, and of the critic."""
    return [p for p in gan.autoencoder.parameters() if p.requires_grad], list(gan.critic.parameters())


@pytest.mark.parametrize("game", [Hinge(), NonSaturating()])
def test_each_player_sees_only_its_own_term(game):
    gan, x = model(game=game, perceptual=classifier()).double(), images()
    first, second = split(gan)
    gan.loss(x)["loss"].backward()
    terms = gan.loss(x)
    own = terms["reconstruction"] + terms["perceptual"] + terms["codebook"] + terms["commitment"]
    own = own + terms["lambda"] * terms["generator"]
    for parameter, expected in zip(first, torch.autograd.grad(own, first, retain_graph=True), strict=True):
        torch.testing.assert_close(parameter.grad, expected)
    for parameter, expected in zip(second, torch.autograd.grad(terms["critic"], second, retain_graph=True)):
        torch.testing.assert_close(parameter.grad, expected)
    assert all(sum(p.grad.abs().sum() for p in player) > 0 for player in (first, second))
    for term, others in (("critic", first), ("generator", second), ("reconstruction", second)):
        grads = torch.autograd.grad(terms[term], others, allow_unused=True, retain_graph=True)
        assert all(grad is None for grad in grads), term
    assert not any(p.requires_grad for p in gan.perceptual.parameters())


def test_lambda_brings_both_gradients_to_one_length():
    gan, x = model(weight=0.5).double(), images()
    terms, last = gan.loss(x), gan.autoencoder.decoder.output[-1].weight
    norms = {
        name: torch.autograd.grad(terms[name], last, retain_graph=True)[0].norm()
        for name in ("reconstruction", "generator")
    }
    expected = 0.5 * norms["reconstruction"] / (norms["generator"] + 1e-4)
    torch.testing.assert_close(terms["lambda"], expected)
    assert not terms["lambda"].requires_grad
    assert model(weight=0.5, adaptive=False).loss(x)["lambda"] == 0.5
    silent = model()
    nn.init.zeros_(silent.critic[-1].weight)  # the critic says nothing of the picture: a bound, not infinity
    assert silent.loss(x)["lambda"] <= 0.8e4


def test_the_critic_begins_at_its_step():
    gan, x = model(start=5), images()
    for step in (0, 4):
        gan.at(step)
        terms = gan.loss(x)
        assert set(terms) == {"loss", "reconstruction", "commitment", "codebook"}
        gan.zero_grad()
        terms["loss"].backward()
        assert all((p.grad == 0).all() for p in gan.critic.parameters())
    gan.at(5)
    assert {"generator", "critic", "lambda"} <= set(gan.loss(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_validation_chooses_weights_by_the_autoencoders_terms(mode):
    gan, x = model(), images()
    gan.eval()
    with mode():
        terms = gan.loss(x)
    torch.testing.assert_close(
        terms["loss"], terms["reconstruction"] + terms["codebook"] + terms["commitment"]
    )
    assert "critic" in terms
    assert "lambda" not in terms


def test_one_optimizer_has_a_group_for_each_player():
    parts = grouped(model(perceptual=classifier()), [{"match": r"^critic\.", "lr": 1e-4}])
    first, second = split(model())
    assert [len(part["params"]) for part in parts] == [len(first), len(second)]
    assert parts[1]["lr"] == 1e-4


def test_playing_moves_both_and_leaves_the_perceptual_network():
    gan, x = model(perceptual=classifier()), images(16)
    before = {name: value.clone() for name, value in gan.state_dict().items()}
    optimizer = torch.optim.Adam((p for p in gan.parameters() if p.requires_grad), lr=1e-2, betas=(0.5, 0.9))
    for step in range(3):
        gan.at(step)
        optimizer.zero_grad()
        gan.train().loss(x)["loss"].backward()
        optimizer.step()
    moved = {name for name, value in gan.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("critic.") for name in moved)
    assert any(name.startswith("autoencoder.") for name in moved)
    assert not any(name.startswith("perceptual.") for name in moved)
    assert not gan.perceptual.training


def test_a_held_module_gives_its_value_and_no_gradient_to_its_weights():
    critic = PatchCritic((1, 8, 8), width=4, layers=2)
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    assert torch.equal(held(critic, x), critic(x))
    held(critic, x).sum().backward()
    assert all(p.grad is None for p in critic.parameters())
    expected = torch.autograd.grad(critic(x).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)


def test_the_games_are_the_papers():
    real, fake = torch.tensor([0.5, 2.0]), torch.tensor([-2.0, 0.5])
    assert Hinge().critic(real, fake).item() == pytest.approx(0.5 * (0.5 / 2 + 1.5 / 2))
    assert Hinge().generator(fake).item() == pytest.approx(0.75)
    s = torch.sigmoid
    expected = 0.5 * (-s(real).log().mean() - (1 - s(fake)).log().mean())
    torch.testing.assert_close(NonSaturating().critic(real, fake), expected)
    torch.testing.assert_close(NonSaturating().generator(fake), -s(fake).log().mean())


def test_a_critic_judges_patches_and_each_image_by_itself():
    torch.manual_seed(0)
    critic = PatchCritic((3, 64, 64), width=4, layers=3)
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    logits = critic(x)
    assert logits.shape == (2, 1, 8, 8)
    torch.testing.assert_close(critic(x[:1]), logits[:1])
    with pytest.raises(ValueError, match="layers=3"):
        PatchCritic((1, 4, 4))
    assert PatchCritic((1, 8, 8))(torch.randn(1, 1, 8, 8)).shape == (1, 1, 1, 1)


def test_the_perceptual_distance_is_zero_for_the_same_and_grows():
    network = FeatureNet(1, 10, widths=(4, 8)).double()
    a = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    noise = torch.randn_like(a)
    assert torch.equal(feature_distance(network, a, a), torch.zeros(3).double())
    near, far = (feature_distance(network, a, a + scale * noise) for scale in (0.01, 1.0))
    assert (near > 0).all()
    assert (near < far).all()
    torch.testing.assert_close(feature_distance(network, a + noise, a), far)
    expected = sum(
        (unit(f) - unit(g)).square().sum(1).mean((1, 2))
        for f, g in zip(network.features(a), network.features(a + noise))
    )
    torch.testing.assert_close(far, expected)


def test_distances_of_half_precision_features_are_summed_in_float32():
    """Features that are nearly alike differ by less than bfloat16 tells of lengths near 1."""
    torch.manual_seed(0)
    p = torch.randn(2, 64, 4, 4).bfloat16()
    q = (1.01 * p.float() + 0.01 * torch.randn(2, 64, 4, 4)).bfloat16()
    for half in (torch.bfloat16, torch.float16):
        assert torch.equal(apart(p.to(half), q.to(half)), apart(p.to(half).float(), q.to(half).float()))
    zeros = torch.zeros(1, 3, 2, 2, dtype=torch.float16)  # whose least positive number is above 1e-10
    assert (apart(zeros, zeros) == 0).all()


def unit(f):
    return f / (f.norm(dim=1, keepdim=True) + 1e-12)  # no feature may be seen at a place


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory):
    """Weight files in the names and forms of the published ones, with weights of chance."""
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    folder, layers = tmp_path_factory.mktemp("lpips"), make_layers(cfgs["D"])
    network = {f"features.{name}": value for name, value in layers.state_dict().items()}
    torch.save({**network, "classifier.0.weight": torch.zeros(2)}, folder / FILES[0])
    widths = (64, 128, 256, 512, 512)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(widths)}
    torch.save(heads, folder / FILES[1])
    return folder, layers, list(heads.values())


def test_lpips_is_that_of_vggs_five_layers(lpips_files):
    folder, layers, heads = lpips_files
    lpips = LPIPS(root=folder)
    lpips.load()
    a, b = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    expected, p, q = 0.0, (a - shift) / scale, (b - shift) / scale
    with torch.no_grad():
        for number, layer in enumerate(layers):
            p, q = layer(p), layer(q)
            if number in (3, 8, 15, 22, 29):  # relu1_2, 2_2, 3_3, 4_3, 5_3
                one, two = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (p, q))
                head = heads[(3, 8, 15, 22, 29).index(number)]
                expected = expected + ((one - two).square() * head).sum(1).mean((1, 2))
        torch.testing.assert_close(lpips(a, b), expected, rtol=1e-4, atol=1e-5)
        assert lpips(a[:, :1], b[:, :1]).shape == (2,)


def test_lpips_without_its_files_is_told_and_what_to_take_instead(tmp_path):
    gan = model(perceptual=LPIPS(root=tmp_path))
    with pytest.raises(FileNotFoundError, match=r"vgg16.*scripts/prepare.py features"):
        gan.prepare([{"x": images()}])
    assert gan.protocol == {"perceptual": "LPIPS 0.1 over VGG-16"}


@pytest.mark.parametrize("policy", ["full", "selective"])
def test_recomputation_changes_nothing_and_counts_once(policy):
    found = []
    for chosen in ("none", policy):
        gan = model(partial(VectorQuantizer, levels=8, codebook=EMACodebook), perceptual=classifier())
        checkpoint_blocks(gan, chosen)
        terms = gan.loss(images())
        terms["loss"].backward()
        grads = [p.grad for p in gan.parameters() if p.requires_grad]
        found.append([terms["loss"].detach(), *gan.autoencoder.quantizer.codebook.gathered, *grads])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    assert found[1][1].sum() == 6 * 2 * 2


def test_half_precision_plays():
    gan = model(perceptual=classifier())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = gan.loss(images())
    terms["loss"].backward()
    assert terms["loss"].dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in gan.parameters() if p.requires_grad)


def test_an_autoencoder_with_a_likelihood_is_refused():
    with pytest.raises(ValueError, match=r"distortion=zoo\.nn\.Absolute"):
        model(autoencoder=autoencoder(distortion=Categorical))


def test_a_perceptual_network_of_other_channels_is_refused():
    grey = ImageClassifier(shape=(3, 8, 8), levels=17, classes=10, widths=[4, 8])
    with pytest.raises(ValueError, match=r"sees 3 channels, and these images have 1; scripts/prepare"):
        model(perceptual=grey)


def test_a_pair_with_a_vqgan_has_no_likelihood():
    class Prior(nn.Module):
        kind = "exact"

        def __init__(self, *, shape, levels):
            super().__init__()

        def log_prob(self, x, y=None):
            return torch.zeros(len(x))

    assert can(Prior(shape=(), levels=2), Density)
    assert not can(Latent(shape=(1, 8, 8), levels=17, codec=model(), prior=Prior), Density)


def test_a_classifier_learns_and_tells_its_accuracy():
    torch.manual_seed(0)
    network = ImageClassifier(shape=(1, 8, 8), levels=17, classes=2, widths=[4, 8])
    x, y = images(40), torch.arange(40) % 2
    x[y == 1, :, :4] = 0
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        network.loss(x, y)["loss"].backward()
        optimizer.step()
    assert network.summarize(network.statistics(x, y)) == {"accuracy": 1.0}


def test_from_features_to_a_prior_over_a_vqgans_codes(tmp_path):
    """Three runs, each of which begins with the one before; the last stands alone."""
    words = ["model.widths=[4,8]", "dataset=digits", *commands.TINY[:1], *commands.TINY[2:]]
    done = commands.run(
        "scripts/prepare", "features", *words, "trainer.max_steps=10", f"runs={tmp_path / 'features'}"
    )
    assert done.code == 0, done.err
    features = commands.only(tmp_path / "features")
    assert f"perceptual.run={features}" in done.out
    (accuracy,) = (n["value"] for n in Run(features).results["numbers"] if n["name"] == "accuracy")

    words = ["model=vqgan", *SMALL, "quantizer.levels=8", "model.start=2", f"perceptual.run={features}"]
    done = commands.train(tmp_path / "gan", *words)
    assert done.code == 0, done.err
    gan = commands.only(tmp_path / "gan")
    shutil.rmtree(features)
    numbers = {number["name"]: number for number in json.loads((gan / "results.json").read_text())["numbers"]}
    assert {"mse", "psnr", "ssim", "perceptual", "codebook_perplexity"} <= set(numbers)
    assert f"accuracy {accuracy:.4f}" in numbers["psnr"]["protocol"]["perceptual"]
    assert all(math.isfinite(number["value"]) for number in numbers.values())
    assert {name for name, _ in stages(Run(gan).config)} == {"perceptual"}
    done = commands.run("train", f"resume={gan}")
    assert "finished already" in done.out, done.err

    words = ["model=code_prior", "model.prior.dim=8", "model.prior.depth=1", "mixer.heads=2"]
    done = commands.train(tmp_path / "prior", *words, f"model.codec.run={gan}")
    assert done.code == 0, done.err
    shutil.rmtree(gan)
    prior = zoo.load(commands.only(tmp_path / "prior"))
    assert prior.sample(2).shape == (2, 1, 8, 8)
    assert not can(prior, Density)
    assert f"accuracy {accuracy:.4f}" in prior.codec.protocol["perceptual"]


def test_preparing_features_says_how_it_is_called():
    done = commands.run("scripts/prepare")
    assert done.code == 1
    assert "scripts/prepare.py features dataset=cifar10" in done.err
