"""Sample quality: distances of features against closed forms and slow loops, and a command that tells its protocol."""

import json
import shutil
import warnings
from pathlib import Path

import commands
import pytest
import torch
from conftest import composed

from zoo.evaluation.features import inception
from zoo.evaluation.quality import frechet, gathered, kid, prdc
from zoo.jobs import data as jobs_data
from zoo.jobs import features as seen
from zoo.jobs.compose import plain
from zoo.models import ImageClassifier
from zoo.nn import fidelity
from zoo.nn.perceptual import FILES
from zoo.runs import Run
from zoo.runs.gather import Result
from zoo.runs.options import curves

CPU = torch.device("cpu")
SEEN = ("metrics=[fid,kid,prdc]", "samples=40", "n=0")


def of(x, **options):
    return gathered(iter(x.split(7)), len(x), **options)


def normal(n, d, *, seed=0, shift=0.0, scale=1.0):
    return shift + scale * torch.randn(
        n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def test_frechet_distance_of_gaussians_is_the_closed_form():
    """Of N(m, A A') and N(m', B B') with commuting covariances: |m - m'|^2 + sum (a - b)^2."""
    basis = torch.linalg.qr(normal(5, 5)).Q
    a, b = torch.tensor([3.0, 2, 1, 0.5, 0]).double(), torch.tensor([1.0, 2, 4, 0, 0.3]).double()
    m = normal(1, 5, seed=3)[0]
    x, y = of(normal(20, 5)), of(normal(20, 5))
    x = x._replace(mean=torch.zeros(5).double(), covariance=basis * a.square() @ basis.T)
    y = y._replace(mean=m, covariance=basis * b.square() @ basis.T)
    expected = m.square().sum() + (a - b).square().sum()
    assert frechet(x, y) == pytest.approx(float(expected), abs=1e-6)
    assert frechet(x, x) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_any_gaussians_is_that_of_the_product_of_covariances():
    x, y = of(normal(50, 6)), of(normal(60, 6, seed=1) @ normal(6, 6, seed=2) + 1)
    roots = torch.linalg.eigvals(x.covariance @ y.covariance).real.clamp(min=0).sqrt().sum()
    expected = (x.mean - y.mean).square().sum() + x.covariance.trace() + y.covariance.trace() - 2 * roots
    assert frechet(x, y) == pytest.approx(float(expected), rel=1e-9)
    assert frechet(y, x) == pytest.approx(frechet(x, y), rel=1e-9)


def test_more_features_than_images_are_no_trouble():
    x = of(normal(10, 40))
    assert frechet(x, x) == pytest.approx(0, abs=1e-5)
    assert frechet(x, of(normal(10, 40, seed=1))) > 1


def test_moments_of_parts_are_those_of_the_whole():
    x = normal(45, 4, shift=3.0)
    whole = of(x, keep=9)
    torch.testing.assert_close(whole.mean, x.mean(0))
    torch.testing.assert_close(whole.covariance, x.T.cov())
    assert whole.count == 45
    assert torch.equal(whole.rows, x[torch.linspace(0, 44, 9).round().long()].float())
    with pytest.raises(ValueError, match="at least two"):
        gathered([x[:1]], 1)


def test_kid_is_the_mean_over_pairs_of_different_vectors():
    x, y = normal(6, 3), normal(6, 3, seed=1, shift=0.5)

    def k(a, b):
        return float((a @ b / 3 + 1) ** 3)

    pairs = [(i, j) for i in range(6) for j in range(6)]
    own = sum(k(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j) / 30
    expected = own - 2 * sum(k(x[i], y[j]) for i, j in pairs) / 36
    value, error = kid(x, y, subsets=2)
    assert value == pytest.approx(expected)
    assert error is None  # each subset is the whole


def test_kid_has_no_bias_and_tells_laws_apart():
    values = [kid(normal(20, 3, seed=2 * i), normal(20, 3, seed=2 * i + 1), subsets=1)[0] for i in range(300)]
    values = torch.tensor(values)
    assert abs(values.mean()) < 4 * values.std() / 300**0.5
    assert (values < 0).any()
    torch.manual_seed(0)
    value, error = kid(normal(200, 3), normal(200, 3, seed=1, shift=1.0), subsets=20, size=50)
    assert value > 5 * error > 0


def test_prdc_counts_balls_as_the_papers_do():
    x, y = normal(30, 2), normal(25, 2, seed=1, shift=0.7)
    k, far = 3, torch.cdist(x, y)
    rx, ry = (sorted_distances(z)[:, k] for z in (x, y))
    told = prdc(x, y, nearest=k)
    in_x = [[bool(far[i, j] < rx[i]) for j in range(25)] for i in range(30)]
    assert told["precision"] == pytest.approx(sum(any(in_x[i][j] for i in range(30)) for j in range(25)) / 25)
    assert told["density"] == pytest.approx(sum(map(sum, in_x)) / (k * 25))
    assert told["coverage"] == pytest.approx(sum(map(any, in_x)) / 30)
    assert told["recall"] == pytest.approx(
        sum(any(far[i, j] < ry[j] for j in range(25)) for i in range(30)) / 30
    )
    with pytest.raises(ValueError, match="more than 30"):
        prdc(x, y, nearest=30)


def sorted_distances(z):
    return torch.cdist(z, z).sort(1).values


def test_prdc_sees_what_is_missing_and_what_is_wrong():
    x = torch.cat([normal(100, 2), normal(100, 2, seed=1, shift=50)])
    half = prdc(x, normal(100, 2, seed=2))
    assert half["precision"] > 0.9
    assert half["recall"] < 0.6
    assert half["coverage"] < 0.6
    wrong = prdc(x, normal(100, 2, seed=3, shift=-500))
    assert wrong == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


class TinyInception(torch.nn.Module):
    """The form of the published file: bytes of colours in, 2048 numbers out."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        small = torch.nn.functional.adaptive_avg_pool2d(x.float() / 255, 2).flatten(1)
        return small.repeat(1, 171)[:, : self.features] if return_features else small


def saved(network, path):
    path.parent.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(network).save(path)
    return path


def test_inception_sees_bytes_of_colours(tmp_path):
    network = inception(saved(TinyInception(2048), tmp_path / "inception-2015-12-05.pt"), 17, CPU)
    x = torch.full((3, 1, 8, 8), 16, dtype=torch.uint8)
    assert torch.equal(network.embed(x), torch.ones(3, 2048))
    assert torch.equal(network.embed(x // 2), torch.full((3, 2048), 128 / 255))
    assert network.suffix == ""
    assert "sha256" in network.told["features"]
    assert network.told["resizing"] == "to 299 x 299, the file's own"


def test_a_file_that_is_no_inception_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        inception(tmp_path / "none.pt", 256, CPU)
    with pytest.raises(ValueError, match=r"shape \(7,\).* are 2048"):
        inception(saved(TinyInception(7), tmp_path / "small.pt"), 256, CPU)
    path = saved(torch.nn.Linear(3, 2), tmp_path / "other.pt")
    with pytest.raises(ValueError, match="return_features"):
        inception(path, 256, CPU)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no TorchScript"):
        inception(path, 256, CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A VAE's run on digits, and beside it a classifier's."""
    runs = tmp_path_factory.mktemp("runs")
    words = ["dataset=digits", *commands.TINY[:1], *commands.TINY[2:], "trainer.max_steps=60", f"runs={runs}"]
    done = commands.run("scripts/prepare", "features", "model.widths=[4,8]", *words)
    assert done.code == 0, done.err
    done = commands.train(runs, "trainer.max_steps=20", "name=vae")
    assert done.code == 0, done.err
    return runs


def run_of(folder, name):
    (found,) = folder.glob(f"{name}-*")
    return found


@pytest.fixture
def vae(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "runs")
    return run_of(copied, "vae")


def numbers(run):
    return json.loads((run / "results.json").read_text())["numbers"]


def test_without_inception_the_numbers_are_the_zoos_and_say_all(vae):
    done = commands.run("evaluate", f"run={vae}", *SEEN, "sample.temperature=0.5")
    assert done.code == 0, done.err
    found = {n["name"]: n for n in numbers(vae) if n["protocol"]["method"] in ("samples", "real images")}
    names = {f"{name}_zoo" for name in ("fid", "kid", "precision", "recall", "density", "coverage")}
    assert names | {f"{name}_real" for name in names} <= set(found)
    assert not {name for name in found if name in ("fid", "kid", "precision")}
    told = found["fid_zoo"]
    (accuracy,) = (n["value"] for n in numbers(run_of(vae.parent, "features")) if n["name"] == "accuracy")
    assert f"accuracy {accuracy:.4f}" in told["protocol"]["features"]
    assert told["protocol"]["reference"] == "train"
    assert told["protocol"]["reference_count"] == 1257
    assert told["protocol"]["temperature"] == 0.5
    assert told["count"] == found["fid_zoo_real"]["count"] == 40
    assert told["weights"]["which"] == "best"
    assert told["split"] == "test"
    assert found["fid_zoo_real"]["value"] < told["value"]
    for name in found:
        assert name in done.out
    again = commands.run("evaluate", f"run={vae}", *SEEN, "sample.temperature=0.5")
    assert again.code == 0
    assert {n["name"]: n["value"] for n in numbers(vae) if n["name"] in found} == {
        name: n["value"] for name, n in found.items()
    }


def test_with_inception_it_is_fid(vae, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.evaluation.features.INCEPTION", 12)  # roots of 2048 x 2048 take seconds
    saved(TinyInception(12), tmp_path / "inception" / "inception-2015-12-05.pt")
    done = commands.run(
        "evaluate", f"run={vae}", "metrics=[fid]", "samples=40", "n=0", f"data_dir={tmp_path}"
    )
    assert done.code == 0, done.err
    found = {n["name"]: n for n in numbers(vae)}
    assert "Inception" in found["fid"]["protocol"]["features"]
    assert {"fid", "fid_real"} <= set(found)
    assert "fid_zoo" not in found


def test_quality_by_an_option_is_a_sweep_a_table_and_a_plot(vae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [f"run={vae}", "metrics=[fid]", "n=0", "sample.temperature=0.5,1.0,2.0", "samples=30,40"]
    done = commands.run("evaluate", "-m", *words)
    assert done.code == 0, done.err
    found = [n for n in numbers(vae) if n["name"] == "fid_zoo"]
    assert len({n["value"] for n in found}) == len(found) == 6  # none has overwritten another
    words = ["--plot", "fid_zoo:protocol.temperature", "--out", "figure"]
    done = commands.run("scripts/compare", vae, *words)
    assert done.code == 0, done.err
    head, *lines = done.out.splitlines()
    assert head.split()[0] == "temperature"
    assert head.count("count=") == 2
    columns = dict(zip(head.split()[1:], zip(*(line.split()[1:] for line in lines[:3]))))
    for n in found:
        place = [0.5, 1.0, 2.0].index(n["protocol"]["temperature"])
        assert columns[f"count={n['count']}"][place] == f"{n['value']:.4g}"
    assert [path.suffix for path in sorted(tmp_path.glob("figure.*"))] == [".png", ".svg"]
    done = commands.run("scripts/compare", vae, "--plot", "fid_zoo:protocol.steps")
    assert done.code == 1
    assert "no run has fid_zoo" in done.err


def test_curves_are_told_apart_by_the_fewest_options():
    """nfe follows from solver and steps: solver alone tells the curves apart, by steps and by nfe."""
    made = [("euler", s, s) for s in (2, 4, 8)] + [("heun", s, 2 * s) for s in (2, 4)]
    found = [
        {"name": "fid", "value": float(nfe), "split": "test", "weights": {}, "count": 9,
         "protocol": {"solver": solver, "steps": steps, "nfe": nfe}}
        for solver, steps, nfe in made
    ]  # fmt: skip
    run = Result(Path("one"), "one", "a" * 64, "1", "finished", "", {}, found, {}, None, None, None)
    for option, place in (("steps", 1), ("nfe", 2)):
        told = curves([run], "fid", option, ["val", "test"])
        assert set(told) == {"solver=euler", "solver=heun"}
        for name, at in told.items():
            assert list(at) == [row[place] for row in made if f"solver={row[0]}" == name]
    assert list(curves([run._replace(numbers=found[:3])], "fid", "steps", ["test"])) == [""]


def test_reconstructions_of_a_codec(vae):
    done = commands.run("evaluate", f"run={vae}", "metrics=[reconstruction,rfid]", "examples=100", "n=0")
    assert done.code == 0, done.err
    found = {n["name"]: n for n in numbers(vae) if n["split"] == "test"}
    assert found.keys() == {"mse", "normalized_mse", "psnr", "ssim", "rfid_zoo", "rfid_zoo_real"}
    assert found["rfid_zoo"]["protocol"]["images"] == found["rfid_zoo"]["count"] == 100
    assert found["rfid_zoo"]["value"] > found["rfid_zoo_real"]["value"] > 0


def test_only_what_is_asked_is_measured(vae):
    before = numbers(vae)
    assert commands.run("evaluate", f"run={vae}", "metrics=[nll]", "n=0", "log_prob.samples=2").code == 0
    new = [n["name"] for n in numbers(vae) if n not in before]
    assert new == ["nats", "bits_per_dim"]


def test_what_cannot_be_had_is_one_sentence(vae, folder, tmp_path):
    def told(run, *words):
        done = commands.run("evaluate", f"run={run}", "n=0", *words)
        assert done.code == 1
        assert len(done.err.strip().splitlines()) == 1, done.err
        return done.err

    features = run_of(vae.parent, "features")
    assert "metrics=is: there are nll" in told(vae, "metrics=[is]")
    assert "draws no samples" in told(features, "metrics=[fid]")
    assert "has no latents" in told(features, "metrics=[rfid]")
    assert "has no likelihood" in told(features, "metrics=[nll]")
    assert "more than 5" in told(vae, "metrics=[fid]", "samples=5")
    assert "reference=all" in told(vae, "metrics=[fid]", "reference=all")
    assert "VAE has no features" in told(vae, "metrics=[fid]", f"features={vae}")
    assert "no such file" in told(vae, "metrics=[fid]", "features=nowhere")
    alone = shutil.copytree(vae, tmp_path / "alone" / vae.name)
    assert "scripts/prepare.py features dataset=digits" in told(alone, "metrics=[fid]")


def test_a_training_asks_for_features_before_it_begins(tmp_path):
    done = commands.train(tmp_path, "evaluate.metrics=[fid]")
    assert done.code == 1
    assert "scripts/prepare.py features dataset=digits" in done.err
    assert not list(tmp_path.glob("*/checkpoints/*.ckpt"))


def test_features_of_real_images_are_kept_by_network_and_data(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path))
    data = jobs_data.loaders(plain_config(folder))
    extract = seen.extractor({"features": run_of(folder, "features")}, data, None, CPU)
    first = seen.features(extract, data, "train", CPU)
    kept = list(tmp_path.rglob("*.npz"))
    assert len(kept) == 1
    fails = extract._replace(embed=None)
    again = seen.features(fails, data, "train", CPU)
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(first, again))
    seen.features(extract._replace(key="another"), data, "train", CPU)
    seen.features(extract, data, "val", CPU)
    seen.features(extract, data, "val", CPU, some=20)
    assert len(list(tmp_path.rglob("*.npz"))) == 4


def plain_config(folder):
    return Run.open(run_of(folder, "vae")).config


def test_a_classifiers_features_are_those_before_its_last_layer():
    model = ImageClassifier(shape=(1, 8, 8), levels=17, classes=3, widths=[4, 8]).eval()
    x = torch.randint(17, (5, 1, 8, 8)).to(torch.uint8)
    assert torch.equal(model.network.head(model.embed(x)), model.network(model.scaled(x)))


def test_labels_are_those_of_images_spread_over_the_split(folder):
    data = jobs_data.loaders(plain_config(folder))
    y = data.dataset("train")[torch.arange(len(data.dataset("train")))]["y"]
    assert torch.equal(seen.labels(data, "train", len(y)), y)
    few = seen.labels(data, "train", 300).bincount(minlength=10)
    assert (few > 15).all()
    assert torch.equal(seen.labels(data, "train", 2 * len(y)), torch.cat([y, y]))


def test_sums_of_fidelity_are_means_over_images():
    x, back = (torch.randint(17, (6, 1, 8, 8)).to(torch.uint8) for _ in range(2))
    a, b = x / 16, back / 16
    parts = [fidelity.sums(x[i : i + 4], back[i : i + 4], 17) for i in (0, 4)]
    told = fidelity.means({name: parts[0][name] + parts[1][name] for name in parts[0]})
    assert told["mse"] == pytest.approx(float((a - b).square().mean()))
    assert told["psnr"] == pytest.approx(float(fidelity.psnr(a, b).mean()), rel=1e-5)
    assert told["normalized_mse"] == pytest.approx(told["mse"] / float(a.var(correction=0)), rel=1e-5)


def test_the_perceptual_distance_is_lpips_where_its_weights_are(tmp_path):
    """Else features of a classifier; the choice stands in the config that a run stores."""
    words = ["model=vqgan", f"data_dir={tmp_path}"]
    with pytest.raises(ValueError, match=r"no classifier's run .*scripts/prepare.py features"):
        plain(composed("train", *words))
    chosen = plain(composed("train", *words, "perceptual.run=runs/features"))["model"]["perceptual"]
    assert chosen == {"_target_": "zoo.pretrained", "run": "runs/features", "weights": "best", "allow": []}
    (tmp_path / "lpips").mkdir()
    for name in FILES:
        (tmp_path / "lpips" / name).touch()
    for more in ([], ["perceptual.run=runs/features"]):
        chosen = plain(composed("train", *words, *more))["model"]["perceptual"]
        assert chosen == {"_target_": "zoo.nn.LPIPS", "root": f"{tmp_path}/lpips"}
