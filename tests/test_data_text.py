"""Texts: published sizes on the real files, exact windows, lossless vocabularies, inputs that are refused."""

import functools
import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, composed

import zoo.data
from zoo.data import BPE, Bytes, Characters, Text, Words, corpora
from zoo.data.vocabulary import boundary, learned, measure, pieces
from zoo.types import PAD

NAMES = ("pydoc", "tinyshakespeare", "text8", "enwik8", "wikitext2", "wikitext103", "own_text")
PROSE = "The quick brown fox jumps over the lazy dog.\nIt does so again, and again; a dog sleeps.\n\n" * 20


@pytest.fixture
def real(data_dir, tmp_path):
    """A folder that shows the real data, so that no cache is written among them."""

    def show(name: str) -> Path:
        folder = data_dir / name
        if not folder.is_dir():
            pytest.skip(f"{folder} is not there: set ZOO_DATA_DIR to a folder with {name}")
        (tmp_path / name).symlink_to(folder.resolve())
        return tmp_path

    return show


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A folder with one short book, and a cache in it."""
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "book.txt").write_text(PROSE)
    return tmp_path


def own(split: str, root: Path, tokens=Characters(), **options) -> Text:  # noqa: B008, nothing changes it
    return Text(split, root=root, corpus=corpora.own_text, tokens=tokens, **options)


def everything(dataset: Text) -> torch.Tensor:
    return dataset[torch.arange(len(dataset))]["x"]


def strange_texts() -> list[str]:
    """Random Unicode: all planes, control characters, white space of all kinds."""
    draw = random.Random(0)
    ranges = [
        (0, 0x20),
        (0x20, 0x7F),
        (0x80, 0x800),
        (0x800, 0xD800),
        (0x10000, 0x110000),
        (0x0A, 0x0B),
        (0x20, 0x21),
    ]
    return [
        "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(80)))
        for _ in range(200)
    ]


# Published numbers


@pytest.mark.parametrize(("split", "tokens"), [("train", 2_088_628), ("val", 217_646), ("test", 245_569)])
def test_wikitext2_has_the_published_tokens_and_types(real, split, tokens):
    dataset = Text(split, root=real("wikitext-2"), corpus=corpora.wikitext2, tokens=Words())
    assert dataset.counts["tokens"] == dataset.counts["words"] == tokens
    assert dataset.levels == 33_278
    assert "<unk>" in dataset.vocabulary.symbols
    assert "<eos>" in dataset.vocabulary.symbols
    assert dataset.tokens.dtype == torch.uint16


def test_tiny_shakespeare_has_65_characters_and_the_split_of_nanogpt(real):
    root = real("tinyshakespeare")
    train, val = (
        Text(split, root=root, corpus=corpora.tinyshakespeare, tokens=Characters())
        for split in ("train", "val")
    )
    assert (train.counts["chars"], val.counts["chars"]) == (1_003_854, 111_540)
    assert train.levels == val.levels == 65
    assert train.decode(train[torch.tensor([0])]["x"][0]).startswith("First Citizen:\nBefore we proceed")
    assert len(train) == 1_003_854 - 256 + 1
    assert len(val) == 436
    with pytest.raises(LookupError, match="no test split; it has train and val"):
        Text("test", root=root, corpus=corpora.tinyshakespeare, tokens=Characters())


def test_no_paragraph_of_pydoc_stands_in_two_splits():
    texts = {split: corpora.pydoc(split, Path()).decode() for split in ("train", "val", "test")}
    sets = {split: {" ".join(p.split()) for p in text.split("\n\n")} - {""} for split, text in texts.items()}
    assert not sets["train"] & sets["val"]
    assert not sets["train"] & sets["test"]
    assert not sets["val"] & sets["test"]
    total = sum(map(len, texts.values()))
    assert 0.6 < len(texts["train"]) / total < 0.9
    assert min(map(len, texts.values())) > 10_000


def test_numbers_on_pydoc_say_which_python_and_how_far_lzma_gets(tmp_path):
    dataset = Text(
        "val",
        root=tmp_path,
        corpus=corpora.pydoc,
        tokens=Characters(unknown=True),
        protocol={"python": "3.x"},
    )
    assert dataset.protocol["python"] == "3.x"
    assert len(dataset.protocol["text"]) == 12
    assert 1.5 < dataset.protocol["lzma_bits_per_char"] < 3.5
    assert dataset.protocol["tokens"] == "chars"
    assert dataset.protocol["context"] == 256
    assert dataset.protocol["windows"] == "non-overlapping"


# Windows


@pytest.mark.parametrize("length", [1, 7, 64, 100_000])
@pytest.mark.parametrize("tokens", [Characters(), Bytes(), BPE(280)], ids=lambda v: v.name)
def test_windows_of_val_cover_it_exactly_once(book, tokens, length):
    val = own("val", book, tokens, length=length)
    x = everything(val)
    assert x.shape == (len(val), length)
    assert x.dtype == torch.int64
    assert int((x != PAD).sum()) == val.counts["tokens"]
    assert torch.equal(x[x != PAD], val.tokens.long())
    assert (x.flatten()[: val.counts["tokens"]] != PAD).all()  # only the tail of the last window is padding
    assert "".join(val.decode(row) for row in x) == corpora.own_text("val", book).decode()


@pytest.mark.parametrize("stride", [1, 3])
def test_windows_of_train_begin_at_every_stride_and_are_full(book, stride):
    train = own("train", book, length=16, stride=stride)
    text = corpora.own_text("train", book).decode()
    assert len(train) == len(range(0, len(text) - 15, stride))
    x = everything(train)
    assert (x != PAD).all()
    assert [train.decode(row) for row in x] == [text[i : i + 16] for i in range(0, len(text) - 15, stride)]


def test_windows_beyond_the_last_are_refused(book):
    val = own("val", book, length=16)
    for index in (-1, len(val)):
        with pytest.raises(IndexError, match=f"window {index} is not there"):
            val[torch.tensor([0, index])]


def test_a_copy_on_a_device_gives_the_same_batches(book):
    val = own("val", book, BPE(280), length=16)
    moved = val.to("cpu")
    assert moved.tokens.dtype == torch.int32
    assert torch.equal(everything(moved), everything(val))
    assert moved.fingerprint == val.fingerprint


def test_a_text_shorter_than_a_window_is_refused_with_its_length(tmp_path):
    (tmp_path / "book.txt").write_text("short enough")
    with pytest.raises(
        ValueError, match=r"train split has 10 tokens, .* length=64; try a length of at most 10"
    ):
        own("train", tmp_path, length=64)


# Vocabularies


@pytest.mark.parametrize("tokens", [Bytes(), BPE(300)], ids=lambda v: v.name)
def test_any_unicode_comes_back_from_bytes_and_bpe(tokens):
    tokens = tokens.learn(PROSE.encode())
    for text in strange_texts():
        ids = tokens.encode(text.encode())
        assert tokens.decode(ids) == text
        assert ids.dtype == (np.uint8 if len(tokens) <= 256 else np.uint16)


def test_any_unicode_comes_back_from_the_characters_it_was_learned_from():
    for text in filter(None, strange_texts()):
        tokens = Characters().learn(text.encode())
        assert len(tokens) == len(set(text))
        assert tokens.decode(tokens.encode(text.encode())) == text


def test_words_come_back_with_their_lines():
    tokens = Words().learn(b"the cat sat\non the mat\n\nthe <unk> end\n")
    assert tokens.symbols[:3] == ["<eos>", "the", "<unk>"]  # frequent ones first, then by bytes
    assert tokens.decode(tokens.encode(b"the  end\n\ncat dog\n")) == "the end\n\ncat <unk>\n"


def test_long_vocabularies_use_wider_numbers():
    text = " ".join(map(str, range(70_000))).encode()
    tokens = Words().learn(text)
    ids = tokens.encode(text)
    assert ids.dtype == np.uint32
    assert int(ids.max()) > 1 << 16
    assert tokens.decode(ids).strip() == text.decode()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (Characters(), "character 'é' at position 21 is not among"),
        (Words(), "word 'été' at position 3 is not among"),
    ],
    ids=["chars", "words"],
)
def test_a_symbol_that_training_never_showed_is_named_with_its_place(tmp_path, tokens, message):
    (tmp_path / "train.txt").write_text("a b c d e f t h i n g s o u l m . w r\nthis is the train\n")
    (tmp_path / "val.txt").write_text(
        "this is the\nthing in été\n" if tokens.name == "chars" else "this is the été\n"
    )
    with pytest.raises(ValueError, match=f"the val split: {message}"):
        own("val", tmp_path, tokens, length=4)


def test_unknown_characters_become_one_symbol_that_is_counted(tmp_path):
    (tmp_path / "train.txt").write_text("abc " * 9)
    (tmp_path / "val.txt").write_text("a€b€")
    val = own("val", tmp_path, Characters(unknown=True), length=8)
    assert val.levels == 5
    assert val.counts["unknown"] == val.protocol["unknown"] == 2
    assert "unknown" not in own("train", tmp_path, Characters(unknown=True), length=8).protocol
    assert val.decode(everything(val)[0]) == "a\ufffdb\ufffd"


def test_a_bpe_that_its_text_cannot_fill_is_refused():
    with pytest.raises(
        ValueError, match=r"size=5000\): the training text gives \d+ symbols .* choose size <= \d+"
    ):
        BPE(5000).learn(PROSE.encode())
    with pytest.raises(ValueError, match="choose size >= 256"):
        BPE(100)


@pytest.mark.parametrize("tokens", [Characters(), Words(), BPE(300)], ids=lambda v: v.name)
def test_a_vocabulary_from_its_file_equals_a_fresh_one(book, tokens):
    text = PROSE.encode()
    fresh = learned(tokens, lambda: text, book / "cache")
    (path,) = (book / "cache").glob("vocabulary-*.json")
    assert json.loads(path.read_text()) == fresh.state()
    stored = learned(tokens, lambda: text, book / "cache")
    again = tokens.learn(text)
    assert stored.state() == fresh.state() == again.state()
    assert np.array_equal(stored.encode(text), again.encode(text))
    path.write_text("{")  # damaged: learned anew
    assert learned(tokens, lambda: text, book / "cache").state() == again.state()
    assert not list((book / "cache").glob(".*"))


def test_another_text_or_another_setting_has_another_file(tmp_path):
    for tokens, text in [(Characters(), b"ab"), (Characters(), b"cd"), (Characters(unknown=True), b"ab")]:
        learned(tokens, lambda text=text: text, tmp_path)
    assert len(list(tmp_path.glob("vocabulary-*.json"))) == 3


def test_a_cache_that_cannot_be_written_is_done_without(book):
    (book / "cache").write_text("a file stands where the folder should")
    assert own("val", book, length=16).levels == len(set(corpora.own_text("train", book).decode()))


# Long texts


@pytest.mark.parametrize("tokens", [Characters(), Bytes(), Words(), BPE(300)], ids=lambda v: v.name)
def test_tokens_mapped_from_a_file_equal_those_in_memory(book, tokens, monkeypatch):
    memory = own("train", book, tokens, length=16)
    monkeypatch.setattr("zoo.data.text.LARGE", 0)
    for _ in range(2):  # written, then read
        mapped = own("train", book, tokens, length=16)
        assert torch.equal(everything(mapped), everything(memory))
        assert mapped.fingerprint == memory.fingerprint
    (path,) = (book / "cache").glob("tokens-*.npy")
    path.write_bytes(path.read_bytes()[:-1])  # damaged: encoded anew
    assert torch.equal(everything(own("train", book, tokens, length=16)), everything(memory))


@pytest.mark.parametrize("size", [1, 4, 5, 17, 1000])
def test_pieces_of_a_text_are_whole_characters_and_add_up(size):
    for text in map(str.encode, strange_texts()[:50]):
        parts = list(pieces(text, max(size, 4)))
        assert b"".join(parts) == text
        assert all(len(part) <= max(size, 4) for part in parts)
        assert "".join(part.decode() for part in parts) == text.decode()
        for place in range(len(text)):
            text[: boundary(text, place)].decode()


def test_a_text_is_measured_as_python_would(monkeypatch):
    monkeypatch.setattr("zoo.data.vocabulary.pieces", functools.partial(pieces, size=5))
    for text in [*strange_texts()[:50], PROSE, "", "one", "one\n", " two words"]:
        data = text.encode()
        lines = list(data.split(b"\n")) if not data.endswith(b"\n") else data.split(b"\n")[:-1]
        lines = lines if data else []
        expected = {
            "chars": len(text),
            "bytes": len(data),
            "words": sum(len(line.split()) + 1 for line in lines),
        }
        assert measure(data) == expected


# What is refused


def test_a_text_that_is_not_utf8_is_refused_with_file_and_byte(tmp_path):
    (tmp_path / "book.txt").write_bytes(b"caf\xc3\xa9, " + b"caf\xe9 " * 9)
    with pytest.raises(ValueError, match=r"book\.txt is not UTF-8 at byte 10"):
        own("train", tmp_path)


def test_characters_cut_in_two_are_a_matter_for_bytes(tmp_path):
    def half(split: str, root: Path) -> bytes:
        return b"whole, " * 9 + ("é".encode() if split == "train" else b"\xc3")

    with pytest.raises(ValueError, match=r"the val split is not UTF-8 .* use zoo\.data\.Bytes"):
        Text("val", root=tmp_path, corpus=half, tokens=Characters(), length=4)
    assert Text("val", root=tmp_path, corpus=half, tokens=Bytes(), length=4).counts["tokens"] == 64


def test_an_empty_text_is_refused(tmp_path):
    (tmp_path / "book.txt").touch()
    with pytest.raises(ValueError, match=r"book\.txt is empty"):
        own("train", tmp_path)


def test_a_folder_without_text_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no text file and no folder with \.txt files"):
        own("train", tmp_path / "nothing")


def test_unknown_splits_are_refused(book):
    for corpus in (corpora.pydoc, corpora.own_text, corpora.wikitext2):
        with pytest.raises(ValueError, match="split='valid' is unknown; there are train, val and test"):
            corpus("valid", book)


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path):
    for size, message in [(100, "cut short: 100 of 1115394 bytes"), (1_115_394, "not the published file")]:
        (tmp_path / "input.txt").write_bytes(b"a" * size)
        with pytest.raises(ValueError, match=message):
            corpora.tinyshakespeare("train", tmp_path)


def test_a_zip_is_read_where_it_lies_and_refused_when_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "verify", lambda content, path, sums: None)
    data = np.random.default_rng(0).integers(97, 123, 2000, np.uint8).tobytes()
    archive = tmp_path / "text8.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("text8", data)
    assert corpora.published(tmp_path, "text8", "text8", "no.zip", "md5:0", size=2000) == data
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"text8\.zip is cut short or damaged"):
        corpora.published(tmp_path, "text8", "text8", "no.zip", "md5:0", size=2000)


def test_a_download_is_unpacked_compared_and_kept(tmp_path, monkeypatch):
    origin = tmp_path / "origin.zip"
    with zipfile.ZipFile(origin, "w") as file:
        file.writestr("text8", b"some text")
    url, root = origin.as_uri(), tmp_path / "data"
    with pytest.raises(ValueError, match="not the published file"):
        corpora.published(root, "text8", "text8", url, "md5:0", size=9)
    assert not root.exists()
    known = "md5:552e21cd4cd9918678e3c1a0df491bc3"
    assert corpora.published(root, "text8", "text8", url, known, size=9) == b"some text"
    origin.unlink()
    assert corpora.published(root, "text8", "text8", url, known, size=9) == b"some text"


def test_without_file_and_network_one_sentence_says_what_to_do(tmp_path):
    url = (tmp_path / "gone.zip").as_uri()
    with pytest.raises(
        FileNotFoundError, match=r"could not be fetched .* put text8 or text8\.zip into"
    ) as caught:
        corpora.published(tmp_path, "text8", "text8", url, "md5:0", size=1)
    assert "\n" not in str(caught.value)


def test_wikitext_from_the_hub_is_written_as_its_files_are(tmp_path, monkeypatch):
    rows = {"text": ["", " = Title = \n", "", " One <unk> . \n"]}
    monkeypatch.setattr("datasets.load_dataset", lambda *words, **options: rows)
    monkeypatch.setitem(corpora.WIKITEXT_TOKENS, ("wikitext-2", "val"), 10)
    assert corpora.wikitext2("val", tmp_path) == b" \n = Title = \n \n One <unk> . \n"
    assert (tmp_path / "wikitext-2" / "wiki.valid.tokens").read_bytes() == corpora.wikitext2("val", tmp_path)
    (tmp_path / "wikitext-2" / "wiki.valid.tokens").write_text("One word\n")
    with pytest.raises(ValueError, match="has 3 words and ends of lines, wikitext-2 val has 10"):
        corpora.wikitext2("val", tmp_path)


def test_wikitext_out_of_reach_says_what_to_do(tmp_path, monkeypatch):
    def offline(*words, **options):
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(
        FileNotFoundError, match=r"Couldn't reach the Hub\): put wiki\.test\.tokens or test\.txt into"
    ):
        corpora.wikitext103("test", tmp_path)


# The user's own


def test_own_text_is_split_by_position_between_characters(tmp_path):
    text = "".join(strange_texts())
    (tmp_path / "a.txt").write_bytes(text[:500].encode())
    (tmp_path / "b.txt").write_bytes(text[500:].encode())
    parts = [
        corpora.own_text(split, tmp_path, val=0.2, test=0.1).decode() for split in ("train", "val", "test")
    ]
    assert "".join(parts) == text
    assert 0.68 < len(parts[0].encode()) / len(text.encode()) < 0.72
    with pytest.raises(LookupError, match="has no test split"):
        corpora.own_text("test", tmp_path, test=0.0)
    with pytest.raises(ValueError, match="leave nothing to train on"):
        corpora.own_text("train", tmp_path, val=0.5, test=0.5)


def test_own_text_may_bring_its_splits(tmp_path):
    (tmp_path / "train.txt").write_text("training")
    (tmp_path / "valid.txt").write_text("held out")
    assert corpora.own_text("train", tmp_path) == b"training"
    assert corpora.own_text("val", tmp_path) == b"held out"
    with pytest.raises(LookupError, match=r"has a train\.txt but no test\.txt"):
        corpora.own_text("test", tmp_path)


# What a run records


def test_the_fingerprint_tells_content_from_content(book):
    assert own("val", book, length=8).fingerprint == own("val", book, length=16).fingerprint
    kinds = (Characters(), Bytes(), BPE(280))
    hashes = {own(split, book, tokens).fingerprint for split in ("train", "val") for tokens in kinds}
    assert len(hashes) == 6
    fixed = Text("val", root=book, corpus=lambda split, root: b"abcab", tokens=Characters())
    assert fixed.fingerprint == "02d3e0c465ae92be7d1c5faf20b576e0"  # runs are found by it


@pytest.mark.parametrize("name", NAMES)
def test_configs_type_the_length_once(name, book):
    root = [f"dataset.source.root={book}"] if name == "own_text" else []
    config = composed("train", f"dataset={name}", "dataset.source.length=64", "model=transformer", *root)
    assert list(config.dataset.shape) == [64]
    assert config.dataset.kind == "text"
    assert config.dataset.name == name
    assert hasattr(zoo.data, config.dataset.source.tokens._target_.removeprefix("zoo.data."))
    assert hasattr(zoo.data, config.dataset.source.corpus._target_.removeprefix("zoo.data."))


@pytest.mark.parametrize("name", ["pydoc", "own_text"])
def test_levels_are_known_without_torch(name, book):
    root = [f"dataset.source.root={book}"] if name == "own_text" else []
    program = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from conftest import composed
print(composed("train", "dataset={name}", "model=transformer", *{root!r}).dataset.levels)
heavy = {{"torch", "datasets", "tokenizers", "lightning"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    corpus = getattr(corpora, name)
    assert int(done.stdout) == len(set(corpus("train", book).decode())) + 1


def test_own_text_asks_for_its_root():
    with pytest.raises(Exception, match=r"dataset\.source\.root|Missing mandatory value: root"):
        _ = composed("train", "dataset=own_text", "model=transformer").dataset.levels
