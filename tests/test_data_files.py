"""Downloads: what is put in place, what is refused, and what one is told to do without a network."""

import hashlib
import io
import urllib.error
import urllib.request

import pytest

from zoo.data import (
    CIFAR10,
    CIFAR100,
    MNIST,
    BinarizedMNIST,
)
from zoo.data.files import download


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


@pytest.fixture
def offline(monkeypatch):
    def refuse(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (MNIST, "train-images-idx3-ubyte.gz"),
        (BinarizedMNIST, "binarized_mnist.npz"),
        (CIFAR10, "data_batch_1"),
        (CIFAR100, "cifar-100-python.tar.gz"),
    ],
)
def test_missing_data_say_where_they_belong(offline, tmp_path, source, name):
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded .*no network.*: put ") as error:
        source("train", root=tmp_path)
    for part in (name, str(tmp_path), "data_dir=", "ZOO_DATA_DIR"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def serve(monkeypatch, answers):
    """Have urlopen answer from a mapping of addresses to (content, promised length)."""

    def answer(url, timeout):
        if url not in answers:
            raise urllib.error.URLError("not there")
        content, length = answers[url]
        reply = io.BytesIO(content)
        reply.headers = {"Content-Length": str(length)}
        return reply

    monkeypatch.setattr(urllib.request, "urlopen", answer)


def test_a_download_is_put_in_place_once_its_sum_is_right(monkeypatch, tmp_path, capsys):
    path = tmp_path / "new" / "file"
    serve(monkeypatch, {"http://b/file": (b"good", 4)})
    download(["http://a/file", "http://b/file"], path, md5(b"good"), needs="")
    assert path.read_bytes() == b"good"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert "http://b/file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        ((b"evil", 4), ValueError, "sent another file than the published one: md5:.* expected, md5:.* found"),
        ((b"go", 4), FileNotFoundError, "the connection ended after 2 of 4 bytes.*: put it there"),
    ],
)
def test_a_wrong_or_broken_download_leaves_nothing(monkeypatch, tmp_path, answer, kind, sentence):
    serve(monkeypatch, {"http://a/file": answer})
    with pytest.raises(kind, match=sentence):
        download(["http://a/file"], tmp_path / "file", md5(b"good"), needs="put it there")
    assert not list(tmp_path.iterdir())
