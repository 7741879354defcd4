"""MNIST, grey and binarized: small files made here, then the real ones where they are."""

import gzip
import hashlib
import io
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.data import (
    MNIST,
    BinarizedMNIST,
)
from zoo.data import binarized_mnist as binarized_files
from zoo.data import mnist as mnist_files


def real(data_dir: Path, place: str) -> Path:
    if not (data_dir / place).exists():
        pytest.skip(f"{data_dir / place} is not there: set ZOO_DATA_DIR to the folder of real data")
    return data_dir


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


def everything(data) -> dict[str, torch.Tensor]:
    return data[torch.arange(len(data))]


# MNIST, on small files made here


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + np.array(array.shape, ">i4").tobytes()
        + array.astype(np.uint8).tobytes()
    )


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A root with 30 training and 10 test images whose sums are taken for the published ones."""
    draw = np.random.default_rng(0)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for kind, count in (("train", 30), ("t10k", 10)):
        images = draw.integers(0, 256, (count, 28, 28))
        images[:, 0, 0], images[:, 0, 1] = 0, 255
        for name, array in (("images-idx3", images), ("labels-idx1", np.arange(count) % 10)):
            content = idx(array)
            (folder / f"{kind}-{name}-ubyte.gz").write_bytes(gzip.compress(content, mtime=0))
            monkeypatch.setitem(mnist_files.FILES, f"{kind}-{name}-ubyte", ("md5:none", md5(content)))
    return tmp_path


def test_val_is_the_end_of_the_training_images(tiny_mnist):
    whole = MNIST("train", root=tiny_mnist, holdout=0)
    train, val = (MNIST(split, root=tiny_mnist, holdout=7) for split in ("train", "val"))
    assert torch.equal(torch.cat([train.x, val.x]), whole.x)
    assert torch.equal(torch.cat([train.y, val.y]), whole.y)
    assert (len(val), len(MNIST("test", root=tiny_mnist))) == (7, 10)


def test_an_idx_file_may_lie_there_unpacked(tiny_mnist):
    before = MNIST("test", root=tiny_mnist)
    for path in (tiny_mnist / "MNIST" / "raw").glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert MNIST("test", root=tiny_mnist).fingerprint == before.fingerprint


def flipped(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


LABELS, PIXELS = "t10k-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz"


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        (PIXELS, lambda b: b[: len(b) // 2], "is cut short: its .gz stream has no end"),
        (PIXELS, lambda b: b"", "is empty"),
        (PIXELS, lambda b: b"no gzip file", "is damaged"),
        (PIXELS, lambda b: b[:600] + bytes([b[600] ^ 1]) + b[601:], "is damaged|is cut short"),
        (
            PIXELS,
            lambda b: gzip.compress(flipped(gzip.decompress(b))),
            "is not the published file: md5:.* expected, md5",
        ),
        (
            PIXELS,
            lambda b: gzip.compress(gzip.decompress(b)[:-1]),
            "its head says 10 x 28 x 28 bytes, 7839 follow",
        ),
        (PIXELS, lambda b: gzip.compress(b"\0\0\x0d\x03" + bytes(12)), "is not an idx file of bytes"),
        (PIXELS, lambda b: gzip.compress(b"\0\0"), "is not an idx file of bytes"),
    ],
)
def test_a_damaged_mnist_file_is_named(tiny_mnist, name, change, sentence):
    path = tiny_mnist / "MNIST" / "raw" / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=sentence) as error:
        MNIST("test", root=tiny_mnist)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (np.arange(5), "holds 5 labels for the 10 images"),
        (np.arange(10) + 243, "holds the label 252, but classes=10"),
    ],
)
def test_wrong_labels_are_named_even_where_the_sum_is_right(tiny_mnist, monkeypatch, labels, sentence):
    path = tiny_mnist / "MNIST" / "raw" / LABELS
    path.write_bytes(gzip.compress(idx(labels)))
    monkeypatch.setitem(mnist_files.FILES, LABELS.removesuffix(".gz"), ("md5:none", md5(idx(labels))))
    with pytest.raises(ValueError, match=sentence) as error:
        MNIST("test", root=tiny_mnist)
    assert str(path) in str(error.value)


def test_mnist_downloads_what_it_lacks(tiny_mnist, monkeypatch):
    before = MNIST("test", root=tiny_mnist)
    path = tiny_mnist / "MNIST" / "raw" / PIXELS
    content, name = path.read_bytes(), PIXELS.removesuffix(".gz")
    path.unlink()

    def answer(url, timeout):
        if not url.startswith(mnist_files.URLS[1]):
            raise urllib.error.URLError("not there")
        reply = io.BytesIO(content)
        reply.headers = {"Content-Length": str(len(content))}
        return reply

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    monkeypatch.setitem(mnist_files.FILES, name, (md5(content), mnist_files.FILES[name][1]))
    assert MNIST("test", root=tiny_mnist).fingerprint == before.fingerprint
    assert path.read_bytes() == content


# Binarized MNIST


@pytest.fixture
def tiny_binary(tmp_path, monkeypatch):
    """A root with 6, 4 and 5 binary images, packed, whose text form is taken for the published one."""
    draw = np.random.default_rng(0)
    bits = {
        key: draw.integers(0, 2, (n, 784), np.uint8) for key, n in (("train", 6), ("valid", 4), ("test", 5))
    }
    folder = tmp_path / "binarized_mnist"
    folder.mkdir()
    np.savez_compressed(
        folder / "binarized_mnist.npz", **{key: np.packbits(x, axis=1) for key, x in bits.items()}
    )
    for key, x in bits.items():
        text = "".join(" ".join(map(str, row)) + "\n" for row in x).encode()
        monkeypatch.setitem(binarized_files.SUMS, key, f"sha256:{hashlib.sha256(text).hexdigest()}")
        (tmp_path / f"{key}.text").write_bytes(text)
    return tmp_path


def test_packed_bits_and_published_text_give_the_same_images(tiny_binary):
    folder = tiny_binary / "binarized_mnist"
    packed = BinarizedMNIST("val", root=tiny_binary)
    (folder / "binarized_mnist.npz").unlink()
    (folder / "binarized_mnist_valid.amat").write_bytes((tiny_binary / "valid.text").read_bytes())
    assert BinarizedMNIST("val", root=tiny_binary).fingerprint == packed.fingerprint
    assert packed.x.shape == (4, 1, 28, 28)
    assert packed.protocol == {"binarization": "static"}


@pytest.mark.parametrize(
    "change", [lambda b: b[:-40], lambda b: b"", lambda b: b[:80] + bytes([b[80] ^ 1]) + b[81:]]
)
def test_a_damaged_file_of_packed_bits_is_named(tiny_binary, change):
    path = tiny_binary / "binarized_mnist" / "binarized_mnist.npz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match="is cut short or damaged") as error:
        BinarizedMNIST("train", root=tiny_binary)
    assert str(path) in str(error.value)


def test_other_binary_images_than_the_published_are_refused(tiny_binary, monkeypatch):
    monkeypatch.setitem(binarized_files.SUMS, "test", "sha256:0")
    with pytest.raises(ValueError, match="another test split than the published one"):
        BinarizedMNIST("test", root=tiny_binary)
    (tiny_binary / "binarized_mnist" / "binarized_mnist.npz").unlink()
    path = tiny_binary / "binarized_mnist" / "binarized_mnist_train.amat"
    path.write_bytes(flipped((tiny_binary / "train.text").read_bytes()))
    with pytest.raises(
        ValueError, match=r"amat is not the published file: sha256:\w+ expected, sha256:\w+ found"
    ):
        BinarizedMNIST("train", root=tiny_binary)


def test_dynamic_pixels_are_drawn_anew_in_training_and_never_in_validation(tiny_mnist):
    def source(split):
        return BinarizedMNIST(split, root=tiny_mnist, binarization="dynamic", holdout=7)

    train = source("train")
    torch.manual_seed(3)
    first, second = everything(train)["x"], everything(train)["x"]
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(everything(train)["x"], first)
    assert first.unique().tolist() == [0, 1]
    for split in ("val", "test"):
        torch.manual_seed(0)
        one = everything(source(split))["x"]
        torch.manual_seed(1)
        assert torch.equal(everything(source(split))["x"], one)
        assert one.unique().tolist() == [0, 1]
    assert train.protocol == source("val").protocol == {"binarization": "dynamic"}


def test_a_threshold_warns_that_its_numbers_compare_with_nothing(tiny_mnist):
    with pytest.warns(UserWarning, match="compare with no published number"):
        data = BinarizedMNIST("test", root=tiny_mnist, binarization="threshold")
    assert torch.equal(data.x, (MNIST("test", root=tiny_mnist).x >= 128).to(torch.uint8))
    assert data.protocol == {"binarization": "threshold"}


def test_kinds_of_binarization_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="choose static, dynamic or threshold"):
        BinarizedMNIST("train", root=tmp_path, binarization="soft")
    with pytest.raises(ValueError, match="static binarization is published with holdout=10000"):
        BinarizedMNIST("train", root=tmp_path, holdout=400)


# The real files


def test_real_mnist_begins_as_it_should(data_dir):
    root = real(data_dir, "MNIST")
    train, test = MNIST("train", root=root, holdout=0), MNIST("test", root=root)
    assert train.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    x = train.x.float() / 255
    assert round(float(x.mean()), 4) == 0.1307
    assert round(float(x.std()), 4) == 0.3081


@pytest.mark.parametrize(("split", "mean"), [("train", 0.13056), ("val", 0.13113), ("test", 0.13251)])
def test_static_binarization_is_the_published_split(data_dir, split, mean):
    data = BinarizedMNIST(split, root=real(data_dir, "binarized_mnist"))
    assert round(float(data.x.double().mean()), 5) == mean
    if split == "val":
        text = "\n".join(" ".join(map(str, row)) for row in data.x.view(-1, 784).tolist()) + "\n"
        assert hashlib.sha256(text.encode()).hexdigest() == (
            "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"
        )


def test_dynamic_validation_images_are_these_for_ever(data_dir):
    data = BinarizedMNIST("val", root=real(data_dir, "MNIST"), binarization="dynamic")
    assert data.fingerprint == "ced002dbd6cb1d786e565ab8a1260a0f"
