"""Where texts come from: a corpus is a function of a split's name and a folder that gives the split as UTF-8
bytes.

A corpus raises LookupError for a split that it does not have, FileNotFoundError where the text is not there
and cannot be fetched, ValueError where it is not what was published. Nothing here imports torch.
"""

import hashlib
import http.client
import io
import urllib.request
import zipfile
import zlib
from pathlib import Path

from zoo.data.cache import keep
from zoo.data.files import by_hand, find, unpack, verify
from zoo.data.vocabulary import boundary, measure, pieces

SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
WIKITEXT_TOKENS = {  # with the ends of lines; Merity et al. 2016, table 1, counts them
    ("wikitext-2", "train"): 2_088_628,
    ("wikitext-2", "val"): 217_646,
    ("wikitext-2", "test"): 245_569,
    ("wikitext-103", "train"): 103_227_021,
    ("wikitext-103", "val"): 217_646,
    ("wikitext-103", "test"): 245_569,
}


def pydoc(split: str, root: Path) -> bytes:
    """The reference that Python prints for help("if"): 0.4 MB of English that every Python brings along.

    Split by topic, about 80/10/10, by a hash of the topic's name. Longer topics repeat shorter ones word by
    word, so a paragraph counts once, in the shortest topic that has it: no paragraph of val or test is in
    train. The text differs from one version of Python to the next: numbers compare within one version only.
    """
    from pydoc_data.topics import topics

    known_split(split)
    seen: set[str] = set()
    parts = []
    for name in sorted(topics, key=lambda name: (len(topics[name]), name)):
        own = {" ".join(paragraph.split()): paragraph for paragraph in topics[name].split("\n\n")}
        fresh = [paragraph for words, paragraph in own.items() if words not in seen]
        seen.update(own)
        place = int.from_bytes(hashlib.blake2b(f"pydoc{name}".encode(), digest_size=8).digest()) % 100
        if split == ("train" if place < 80 else "val" if place < 90 else "test") and fresh:
            parts.append("\n\n".join(fresh).strip("\n") + "\n\n")
    return "".join(parts).encode()


def tinyshakespeare(split: str, root: Path) -> bytes:
    """40,000 lines of Shakespeare, 1,115,394 characters, 65 different: the first 90 % train, the rest val; no
    test.

    Source: Karpathy 2015 (char-rnn); the split is nanoGPT's.
    """
    text = published(
        root,
        "tinyshakespeare",
        "input.txt",
        SHAKESPEARE,
        "md5:6fb458f1232090904fb40fe944165e91",
        size=1_115_394,
    )
    return positions(text, split, {"train": 1_003_854, "val": 111_540}, "tiny Shakespeare")


def text8(split: str, root: Path) -> bytes:
    """100 M characters of Wikipedia in 27 symbols, a-z and the space: 90/5/5 M by position (Mahoney 2006)."""
    url, known = "http://mattmahoney.net/dc/text8.zip", "md5:3bea1919949baf155f99411df5fada7e"
    text = published(root, "text8", "text8", url, known, size=100_000_000)
    return positions(text, split, {"train": 90_000_000, "val": 5_000_000, "test": 5_000_000}, "text8")


def enwik8(split: str, root: Path) -> bytes:
    """The first 100 M bytes of a Wikipedia dump, markup included: 90/5/5 M by position (Mahoney 2006).

    A split's first and last character may be cut: this is a corpus for `Bytes`.
    """
    url, known = "http://mattmahoney.net/dc/enwik8.zip", "md5:a1fa5ffddb56f4953e226637dabbb36a"
    text = published(root, "enwik8", "enwik8", url, known, size=100_000_000)
    return positions(text, split, {"train": 90_000_000, "val": 5_000_000, "test": 5_000_000}, "enwik8")


def wikitext2(split: str, root: Path) -> bytes:
    """2 M words of Wikipedia, rare ones are <unk>: 33,278 types with <eos> (Merity et al. 2016)."""
    return wikitext("wikitext-2", split, root)


def wikitext103(split: str, root: Path) -> bytes:
    """103 M words of Wikipedia, rare ones are <unk>: 267,735 types with <eos> (Merity et al. 2016)."""
    return wikitext("wikitext-103", split, root)


def own_text(split: str, root: Path, *, val: float = 0.1, test: float = 0.1) -> bytes:
    """The user's own: a .txt file, a folder of them, or a folder with train.txt, val.txt and, if wanted,
    test.txt.

    One text, or the files of a folder in the order of their names, is split by position: the last `test` of
    its bytes, the `val` before them, the rest for training; cuts never fall inside a character.
    """
    known_split(split)
    if (root / "train.txt").is_file():
        path = find(root, f"{split}.txt") or (find(root, "valid.txt") if split == "val" else None)
        if path is None:
            raise LookupError(f"{root} has a train.txt but no {split}.txt, so there is no {split} split")
        return checked(unpack(path), path)
    paths = [root] if root.is_file() else sorted(root.rglob("*.txt"))
    if not paths:
        raise FileNotFoundError(
            f"{root} is no text file and no folder with .txt files; dataset.source.root names one"
        )
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise ValueError(f"val={val} and test={test} leave nothing to train on; try val=0.1 test=0.1")
    text = b"".join(checked(unpack(path), path) for path in paths)
    middle, end = (boundary(text, round(len(text) * part)) for part in (1 - val - test, 1 - test))
    part = {"train": text[:middle], "val": text[middle:end], "test": text[end:]}[split]
    if not part:
        raise LookupError(
            f"{root} has no {split} split: of its {len(text)} bytes {split} gets none (val={val} test={test})"
        )
    return part


def known_split(split: str) -> None:
    """ValueError for a name that no split has."""
    if split not in ("train", "val", "test"):
        raise ValueError(f"split={split!r} is unknown; there are train, val and test")


def positions(text: bytes, split: str, sizes: dict[str, int], name: str) -> bytes:
    """The part of a text that a split gets, in the order of `sizes`. LookupError for one that it lacks."""
    known_split(split)
    if split not in sizes:
        raise LookupError(f"{name} has no {split} split; it has {' and '.join(sizes)}")
    names = list(sizes)
    start = sum(sizes[before] for before in names[: names.index(split)])
    return text[start : start + sizes[split]]


def checked(text: bytes, path: Path) -> bytes:
    """The text of a file. ValueError, with the place, if it is not UTF-8."""
    done = 0
    for piece in pieces(text):
        try:
            piece.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not UTF-8 at byte {done + error.start} ({error.reason}); "
                "convert it, as by iconv -t utf-8"
            ) from None
        done += len(piece)
    return text


def published(root: Path, folder: str, name: str, url: str, known: str, *, size: int) -> bytes:
    """A published text from its file, a .zip beside it, or its address; always compared with its sum.

    size  bytes of the whole text, which a shorter file's error tells
    """
    archive = f"{folder}.zip"
    places = [(place, file) for file in (name, archive) for place in (root / folder, root)]
    path = next((path for place, file in places if (path := find(place, file))), None)
    if path is None:
        path = root / folder / name
        text = fetched(url, by_hand(f"{name} or {archive}" if url.endswith(".zip") else name, root / folder))
        if url.endswith(".zip"):
            text = unzipped(text, name, url)
        verify(text, Path(url.rpartition("/")[2]), [known])
        keep(path, lambda file: file.write(text))
        return text
    text = unzipped(path.read_bytes(), name, str(path)) if path.suffix == ".zip" else unpack(path)
    if len(text) < size:
        raise ValueError(f"{path} is cut short: {len(text)} of {size} bytes; delete it and get it again")
    verify(text, path, [known])
    return text


def unzipped(content: bytes, name: str, place: str) -> bytes:
    """One file of a .zip. ValueError, with the archive's place, where it is damaged or has no such file."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{place} is cut short or damaged ({error}); delete it and get it again") from None
    except KeyError:
        raise ValueError(f"{place} has no file {name!r} inside; delete it and get it again") from None


def fetched(url: str, needs: str) -> bytes:
    """What an address sends. FileNotFoundError if it does not answer; `needs` says what to do by hand."""
    try:
        with urllib.request.urlopen(url, timeout=60) as reply:
            return bytes(reply.read())
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise FileNotFoundError(f"no file, and {url} could not be fetched ({reason}): {needs}") from None


def wikitext(name: str, split: str, root: Path) -> bytes:
    """One split of WikiText, tokenized by its publisher: plain files if there are, else from Hugging Face."""
    known_split(split)
    short = {"train": "train", "val": "valid", "test": "test"}[split]
    files = [f"wiki.{short}.tokens", f"{short}.txt"]
    path = find(root / name, files[0]) or find(root / name, files[1])
    text = (
        checked(unpack(path), path)
        if path
        else hub_wikitext(name, split, by_hand(" or ".join(files), root / name))
    )
    expected, found = WIKITEXT_TOKENS[name, split], measure(text)["words"]
    place = path or f"Salesforce/wikitext, {name}-v1"
    if found != expected:
        raise ValueError(
            f"{place} has {found} words and ends of lines, {name} {split} has {expected}: "
            "get the file that is already tokenized (wiki.*.tokens), not the raw one"
        )
    if path is None:
        keep(root / name / files[0], lambda file: file.write(text))
    return text


def hub_wikitext(name: str, split: str, needs: str) -> bytes:
    """WikiText from Hugging Face, as its files were: the hub leaves the blank out of empty lines."""
    try:
        from datasets import load_dataset

        rows = load_dataset(
            "Salesforce/wikitext", f"{name}-v1", split="validation" if split == "val" else split
        )
    except Exception as error:  # the hub's client has a class of its own for each way to be out of reach
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"no file, and Salesforce/wikitext could not be fetched ({reason}): {needs}"
        ) from None
    return "".join(row if row.endswith("\n") else f"{row or ' '}\n" for row in rows["text"]).encode()
