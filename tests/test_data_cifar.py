"""CIFAR: small files made here, then the real ones where they are."""

import hashlib
import lzma
import math
import pickle
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from zoo.data import (
    CIFAR10,
    CIFAR100,
    CoarseCIFAR10,
    CropFlip,
)
from zoo.jobs.measure import measure
from zoo.models import VAE


def real(data_dir: Path, place: str) -> Path:
    if not (data_dir / place).exists():
        pytest.skip(f"{data_dir / place} is not there: set ZOO_DATA_DIR to the folder of real data")
    return data_dir


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


@pytest.fixture
def tiny_cifar(tmp_path, monkeypatch):
    """A root with the files of a CIFAR-10 of 5 x 4 training and 4 test images."""
    draw = np.random.default_rng(0)
    folder = tmp_path / CIFAR10.folder
    folder.mkdir()
    monkeypatch.setattr(CIFAR10, "totals", (20, 4))
    sums = {}
    for name in CIFAR10.files:
        batch = {
            b"data": draw.integers(0, 256, (4, 3072), np.uint8),
            b"labels": draw.integers(0, 10, 4).tolist(),
        }
        content = pickle.dumps(batch, protocol=3)
        (folder / name).write_bytes(content)
        sums[name] = (md5(content),)
    monkeypatch.setattr(CIFAR10, "files", sums)
    return tmp_path


def test_a_likelihood_of_cifar_is_told_in_bits_per_dimension(tiny_cifar):
    """Its numbers of images once stood where a text has its counts of characters, and each evaluation failed."""
    data = CIFAR10("test", root=tiny_cifar)
    model = VAE(shape=(3, 32, 32), levels=256, latent=2)
    numbers = measure(
        model,
        SimpleNamespace(
            batch_size=4,
            facts={"name": "cifar10", "kind": "image", "levels": 256, "unit": "bits/dim"},
            dataset=lambda split: data,
            has=lambda split: split == "test",
            loader=lambda *_: [data[torch.arange(4)]],
        ),
        splits=["test"],
        log_prob={"samples": 1},
        weights={},
        metrics=["nll"],
    )
    told = {number["name"]: number["value"] for number in numbers}
    assert told["bits_per_dim"] == pytest.approx(told["nats"] / 3072 / math.log(2))


def test_holdout_cuts_across_the_batches_of_cifar(tiny_cifar):
    whole = CIFAR10("train", root=tiny_cifar, holdout=0)
    assert len(whole) == 20
    for holdout in (1, 4, 6, 19):
        train, val = (CIFAR10(split, root=tiny_cifar, holdout=holdout) for split in ("train", "val"))
        assert len(val) == holdout
        assert torch.equal(torch.cat([train.x, val.x]), whole.x)
        assert torch.equal(torch.cat([train.y, val.y]), whole.y)


def test_cifar_rows_are_planes_of_red_green_and_blue(tiny_cifar):
    batch = pickle.loads((tiny_cifar / CIFAR10.folder / "test_batch").read_bytes())
    x = CIFAR10("test", root=tiny_cifar).x
    assert x[2, 1, 3, 5] == batch[b"data"][2, 1024 + 3 * 32 + 5]


def test_a_packed_batch_and_the_published_archive_give_the_same_images(tiny_cifar):
    before = CIFAR10("train", root=tiny_cifar, holdout=0).fingerprint
    folder = tiny_cifar / CIFAR10.folder
    path = folder / "data_batch_2"
    (folder / "data_batch_2.xz").write_bytes(lzma.compress(path.read_bytes()))
    path.unlink()
    assert CIFAR10("train", root=tiny_cifar, holdout=0).fingerprint == before
    (folder / "data_batch_2.xz").rename(folder / "data_batch_2")
    path.write_bytes(lzma.decompress(path.read_bytes()))
    with tarfile.open(tiny_cifar / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(folder, CIFAR10.folder)
    for file in folder.iterdir():
        file.unlink()
    assert CIFAR10("train", root=tiny_cifar, holdout=0).fingerprint == before
    archive = tiny_cifar / "cifar-10-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz is cut short or damaged"):
        CIFAR10("test", root=tiny_cifar)


def test_augmentation_is_for_training_and_known_to_every_split(tiny_cifar):
    for split in ("train", "val", "test"):
        data = CIFAR10(split, root=tiny_cifar, holdout=4, augment=CropFlip(padding=2))
        assert data.protocol == {"augment": "CropFlip(padding=2, flip=True)"}
        assert (data.augment is not None) == (split == "train")


def test_a_test_batch_that_lacks_images_says_so(tiny_cifar, monkeypatch):
    monkeypatch.setattr(CIFAR10, "totals", (20, 5))
    assert CIFAR10("test", root=tiny_cifar).protocol == {"examples": "4 of 5 test images"}


def batch_of(images, labels) -> bytes:
    return pickle.dumps({b"data": images, b"labels": labels}, protocol=3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda b: b[:-3000], "cannot be read"),
        (lambda b: b"", "is empty"),
        (lambda b: b.replace(b"labels", b"Labels"), "cannot be read"),
        (
            lambda b: b[:5000] + bytes([b[5000] ^ 1]) + b[5001:],
            "is not the published file: md5:.* expected, md5:.* found",
        ),
        (lambda b: batch_of(np.zeros((4, 3072), np.uint8), [1, 2]), "holds 4 images but 2 labels"),
        (lambda b: batch_of(np.zeros((2, 3072), np.uint8), [1, 10]), "holds labels from 1 to 10"),
        (lambda b: batch_of(np.zeros((2, 784), np.uint8), [1, 2]), r"holds images of uint8 \(2, 784\)"),
        (lambda b: pickle.dumps(Path("x")), "cannot be read .it asks for pathlib"),
    ],
)
def test_a_damaged_cifar_file_is_named(tiny_cifar, change, sentence):
    path = tiny_cifar / CIFAR10.folder / "test_batch"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=sentence) as error:
        CIFAR10("test", root=tiny_cifar)
    assert str(path) in str(error.value)


def test_a_cut_xz_file_is_named(tiny_cifar):
    path = tiny_cifar / CIFAR10.folder / "test_batch"
    path.with_suffix(".xz").write_bytes(lzma.compress(path.read_bytes())[:-100])
    path.unlink()
    with pytest.raises(ValueError, match=r"test_batch.xz is cut short"):
        CIFAR10("test", root=tiny_cifar)


def test_a_pickle_that_would_run_something_is_refused(tiny_cifar):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tiny_cifar / "ran",))

    path = tiny_cifar / CIFAR10.folder / "test_batch"
    path.write_bytes(pickle.dumps({b"data": Evil()}, protocol=3))
    with pytest.raises(ValueError, match="it asks for"):
        CIFAR10("test", root=tiny_cifar)
    assert not (tiny_cifar / "ran").exists()


def test_cifar100_reads_the_fine_labels(tmp_path, monkeypatch):
    folder = tmp_path / CIFAR100.folder
    folder.mkdir()
    batch = {
        b"data": np.zeros((4, 3072), np.uint8),
        b"fine_labels": [99, 0, 5, 7],
        b"coarse_labels": [1, 2, 3, 4],
    }
    content = pickle.dumps(batch, protocol=3)
    monkeypatch.setattr(CIFAR100, "totals", (4, 4))
    monkeypatch.setattr(CIFAR100, "files", {"train": (md5(content),), "test": (md5(content),)})
    for name in CIFAR100.files:
        (folder / name).write_bytes(content)
    assert CIFAR100("train", root=tmp_path, holdout=1).y.tolist() == [99, 0, 5]
    assert CIFAR100("test", root=tmp_path).y.tolist() == [99, 0, 5, 7]


def test_real_cifar_has_its_known_means(data_dir):
    root = real(data_dir, "cifar-10-batches-py")
    train, val, test = (CIFAR10(split, root=root) for split in ("train", "val", "test"))
    assert (len(train), len(val)) == (45_000, 5_000)
    assert len(test) in (9_980, 10_000)
    assert test.protocol == ({} if len(test) == 10_000 else {"examples": "9980 of 10000 test images"})
    x = torch.cat([train.x, val.x])
    assert torch.cat([train.y, val.y]).bincount().tolist() == [5000] * 10
    means = x.flatten(2).sum((0, 2), dtype=torch.int64).double() / (50_000 * 1024 * 255)
    assert_close(means, torch.tensor([0.4914, 0.4822, 0.4465]).double(), atol=5e-5, rtol=0)


def test_coarse_images_have_the_upper_bits(tiny_cifar):
    fine = CIFAR10("train", root=tiny_cifar, holdout=4)
    for bits in (1, 5, 8):
        coarse = CoarseCIFAR10("train", root=tiny_cifar, holdout=4, bits=bits)
        assert torch.equal(coarse.x.int(), fine.x.int() // 2 ** (8 - bits))
        assert (coarse.x.dtype, int(coarse.x.max())) == (torch.uint8, 2**bits - 1)
        assert torch.equal(coarse.y, fine.y)
    flip = CropFlip(padding=0)
    assert CoarseCIFAR10("train", root=tiny_cifar, holdout=4, augment=flip).augment is flip
    assert CoarseCIFAR10("val", root=tiny_cifar, holdout=4, augment=flip).augment is None
    for bits in (0, 9):
        with pytest.raises(ValueError, match=f"bits={bits}"):
            CoarseCIFAR10("test", root=tiny_cifar, bits=bits)
