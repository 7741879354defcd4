"""Images: what the loaders give, that chance is keyed and vectorised, that no damaged file gets past."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.testing import assert_close

import zoo.data
from zoo.data import (
    Arrays,
    Bernoulli,
    CropFlip,
    Digits,
    Shapes,
)
from zoo.data.arrays import crop_flip
from zoo.data.digits import FILE
from zoo.data.shapes import FACTORS, NAMES, draw_factors, render

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "dataset"
IMAGE_SETS = ["digits", "shapes", "mnist", "binarized_mnist", "cifar10", "cifar100", "own_images"]


def everything(data) -> dict[str, torch.Tensor]:
    return data[torch.arange(len(data))]


def real(data_dir: Path, place: str) -> Path:
    if not (data_dir / place).exists():
        pytest.skip(f"{data_dir / place} is not there: set ZOO_DATA_DIR to the folder of real data")
    return data_dir


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


# The package itself


def test_every_public_name_is_there():
    for name in zoo.data.__all__:
        assert getattr(zoo.data, name) is not None
    with pytest.raises(AttributeError, match=r"zoo\.data has no 'Imagenet'"):
        _ = zoo.data.Imagenet


def test_importing_the_package_imports_no_torch():
    code = "import sys, zoo.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CONFIGS.parents[1]).returncode == 0


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_the_yaml_lists_every_argument_and_its_facts(name):
    import inspect

    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    assert (CONFIGS / f"{name}.yaml").read_text().startswith("# ")
    assert list(config) == ["name", "kind", "shape", "levels", "classes", "unit", "sizes", "source"]
    assert config.name == name
    source = getattr(zoo.data, config.source._target_.rpartition(".")[2])
    given = {key for key in config.source if not key.startswith("_")}
    assert given == set(inspect.signature(source).parameters) - {"split"}


@pytest.mark.parametrize("name", ["digits", "shapes", "mnist", "binarized_mnist"])
def test_the_data_are_as_the_yaml_says(name, data_dir):
    folder = {"mnist": "MNIST", "binarized_mnist": "binarized_mnist", "cifar10": "cifar-10-batches-py"}.get(
        name
    )
    if folder is not None:
        real(data_dir, folder)
    root = OmegaConf.create({"data_dir": str(data_dir), "dataset": OmegaConf.load(CONFIGS / f"{name}.yaml")})
    source = instantiate(root.dataset.source)
    for split, size in root.dataset.sizes.items():
        data = source(split=split)
        assert size in (None, len(data))
        batch = data[torch.tensor([len(data) - 1, 0, 0])]
        assert batch["x"].shape == (3, *root.dataset.shape)
        assert batch["x"].dtype == torch.uint8
        assert ("y" in batch) == (root.dataset.classes is not None)
        x = everything(data)["x"]
        assert int(x.max()) == root.dataset.levels - 1
        if data.y is not None:
            assert data.y.unique().tolist() == list(range(root.dataset.classes))


# Arrays


def test_a_batch_is_the_examples_asked_for_in_their_order():
    x, y = (
        torch.arange(24, dtype=torch.uint8).view(6, 2, 2),
        torch.tensor([5, 4, 3, 2, 1, 0], dtype=torch.uint8),
    )
    batch = Arrays(x, y, levels=24, classes=6)[torch.tensor([4, 0, 4])]
    assert batch["x"].tolist() == [x[4].tolist(), x[0].tolist(), x[4].tolist()]
    assert batch["y"].tolist() == [1, 5, 1]
    assert batch["y"].dtype == torch.int64


def test_a_fingerprint_is_of_the_content_its_shape_and_its_type():
    x = torch.arange(8, dtype=torch.uint8)
    same = Arrays(x.clone()).fingerprint
    assert Arrays(x).fingerprint == same == Arrays(x).to("cpu").fingerprint
    others = [Arrays(x.flip(0)), Arrays(x.view(2, 4)), Arrays(x.long()), Arrays(x, x)]
    assert len({same, *(other.fingerprint for other in others)}) == 5


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        ([0, 16], None, "holds the value 16, but levels=16 allows only 0 to 15"),
        ([-1, 3], None, "holds the value -1, but levels=16"),
        ([0.5, 1.0], None, "holds the value 0.5, a real number"),
        ([], None, "holds no examples"),
        ([0, 1, 2], [0, 1], "holds 3 examples but 2 labels"),
        ([0, 1], [0, 10], "holds the label 10, but classes=10 allows only 0 to 9"),
    ],
)
def test_data_that_break_their_facts_are_refused(x, y, sentence):
    y = None if y is None else torch.tensor(y)
    with pytest.raises(ValueError, match=f"a.npz {sentence}"):
        Arrays(torch.tensor(x), y, levels=16, classes=10, name="a.npz")


def test_rows_lie_together_in_memory_however_they_came():
    assert Arrays(torch.zeros(4, 6, dtype=torch.uint8).T).x.is_contiguous()


# Chance


def shifted(image: torch.Tensor, top: int, left: int, mirror: bool, padding: int) -> torch.Tensor:
    """One image, pixel by pixel."""
    C, H, W = image.shape
    out = torch.zeros_like(image)
    for c in range(C):
        for row in range(H):
            for column in range(W):
                i, j = row + top - padding, column + left - padding
                if 0 <= i < H and 0 <= j < W:
                    out[c, row, column] = image[c, i, W - 1 - j if mirror else j]
    return out


@pytest.mark.parametrize("shape", [(3, 4, 6), (1, 5, 3)])
def test_crop_and_flip_equal_the_image_by_image_form(shape):
    padding = 2
    cases = [(t, s, m) for t in range(5) for s in range(5) for m in (0, 1)]
    x = torch.randint(
        1, 256, (len(cases), *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    top, left, mirror = torch.tensor(cases).T
    slow = [shifted(image, *case, padding) for image, case in zip(x, cases)]
    assert torch.equal(crop_flip(x, top, left, mirror, padding), torch.stack(slow))


def test_crops_and_flips_are_drawn_evenly_and_keyed_by_the_default_generator():
    x = torch.zeros(20_000, 1, 9, 9, dtype=torch.uint8)
    x[:, 0, 4, 3] = 1  # not in the middle, so that a mirrored image is seen
    data = Arrays(x, augment=CropFlip(padding=1))
    torch.manual_seed(0)
    first, second = everything(data)["x"], everything(data)["x"]
    torch.manual_seed(0)
    assert torch.equal(everything(data)["x"], first)
    assert not torch.equal(first, second)
    places = first.flatten(1).float().mean(0).view(9, 9)
    assert_close(places[3:6, 2:7].sum(1), torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    # a mark in column 3 lands on 2, 3, 4, and mirrored, in column 5, on 4, 5, 6
    assert_close(places.sum(0)[2:7] * 6, torch.tensor([1.0, 1, 2, 1, 1]), atol=0.06, rtol=0)
    unflipped = CropFlip(padding=0, flip=False)
    assert torch.equal(unflipped(first), first)


def test_a_pixel_is_one_as_often_as_it_is_grey():
    x = torch.tensor([0, 1, 51, 128, 254, 255], dtype=torch.uint8).expand(40_000, 6)
    torch.manual_seed(0)
    mean = Bernoulli()(x).double().mean(0)
    assert mean[0] == 0
    assert mean[-1] == 1
    assert_close(mean, x[0].double() / 255, atol=0.01, rtol=0)


# Digits and shapes


def test_digits_come_with_the_package_in_the_order_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    digits = datasets.load_digits()
    splits = [Digits(split) for split in ("train", "val", "test")]
    assert [len(data) for data in splits] == [1257, 180, 360]
    assert np.array_equal(torch.cat([data.x for data in splits])[:, 0].numpy(), digits.images)
    assert np.array_equal(torch.cat([data.y for data in splits]).numpy(), digits.target)
    assert FILE.stat().st_size < 60_000
    assert "CC BY 4.0" in FILE.with_suffix(".txt").read_text()


def test_without_a_holdout_there_is_no_val_split():
    assert len(Digits("train", holdout=0)) == 1437
    with pytest.raises(LookupError, match="no val split: holdout=0"):
        Digits("val", holdout=0)
    with pytest.raises(ValueError, match="holdout=1437 cannot be taken from 1437 training examples; try"):
        Digits("train", holdout=1437)
    with pytest.raises(ValueError, match="split='valid' is unknown"):
        Digits("valid")


@pytest.fixture(scope="module")
def shapes():
    return Shapes("val")


def test_shapes_are_equal_on_every_machine(shapes):
    assert hashlib.sha256(shapes.x.numpy().tobytes()).hexdigest() == (
        "dfddd8671b18f2dbb677cafd875f9cc8eab38ec79c99e1d08e9289735ef1f924"
    )
    assert draw_factors(2, seed=0).tolist() == [[5, 17, 0, 0, 8, 58, 9], [5, 34, 5, 8, 0, 54, 0]]


def test_factors_are_even_and_independent_of_the_split(shapes):
    factors = torch.from_numpy(draw_factors(20_000, seed=0))
    for column, count in enumerate(FACTORS.values()):
        share = factors[:, column].bincount(minlength=count) / 20_000 * count
        assert_close(share, torch.ones(count), atol=0.25, rtol=0)
    assert torch.equal(shapes.y, shapes.factors[:, 0])
    assert len(NAMES) == FACTORS["shape"]
    assert not torch.equal(Shapes("test").x, shapes.x)


def test_the_factors_of_a_shape_can_be_seen_in_it():
    """Place and size from the difference to the bare background, hue from the pixel in the middle."""
    disc = list(NAMES).index("disc")
    factors = np.array(
        [[disc, h, s, r, c, 0, b] for h, s, r, c, b in [(0, 2, 0, 10, 8), (21, 5, 5, 5, 0), (43, 0, 9, 3, 4)]]
    )
    x = render(factors).double()
    for (_, hue, size, row, column, _, _), image in zip(factors, x):
        corner = image[:, :, :1] if column > 5 else image[:, :, -1:]  # a column the shape doesn't reach
        there = (image - corner).abs().sum(0)
        cover = there / there.max()
        assert round((float(cover.sum()) / np.pi) ** 0.5 / 0.9 - 5) == size
        grid = torch.arange(32.0, dtype=torch.float64)
        assert abs(float((cover.sum(1) * grid).sum() / cover.sum()) - (10.5 + row)) < 0.3
        assert abs(float((cover.sum(0) * grid).sum() / cover.sum()) - (10.5 + column)) < 0.3
        assert int(image[:, 10 + row, 10 + column].argmax()) == {0: 0, 21: 1, 43: 2}[hue]


def test_turning_a_square_by_a_quarter_changes_nothing():
    square = list(NAMES).index("square")
    quarter = FACTORS["angle"] // 4
    one, two, other = render(
        np.array([[square, 9, 3, 5, 5, a, 2] for a in (3, 3 + quarter, 3 + quarter // 2)])
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
