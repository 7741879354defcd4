"""Files of public data sets: found, downloaded if need be, unpacked, and compared with their known sums.

A sum is written "md5:<hex>" or "sha256:<hex>". It is always the sum of the unpacked content, except where a
download is checked, so that a data set is the same whether its files lie there plain, as .gz or as .xz.
"""

import gzip
import hashlib
import lzma
import os
import sys
import urllib.request
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

_OPEN = {".gz": gzip.open, ".xz": lzma.open}


def find(folder: Path, name: str) -> Path | None:
    """The file `name`, or else name.gz or name.xz, of a folder; None if it has none of them."""
    paths = (folder / (name + suffix) for suffix in ("", *_OPEN))
    return next((path for path in paths if path.is_file()), None)


def unpack(path: Path) -> bytes:
    """The content of a file, unpacked if it is .gz or .xz; ValueError if it is empty, cut or damaged."""
    try:
        with _OPEN.get(path.suffix, open)(path, "rb") as file:
            content = file.read()
    except EOFError:
        raise ValueError(
            f"{path} is cut short: its {path.suffix} stream has no end; delete it and get it again"
        ) from None
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and get it again") from None
    if not content:
        raise ValueError(f"{path} is empty; delete it and get it again")
    return content


def verify(content: bytes, path: Path, sums: Sequence[str]) -> None:
    """ValueError unless the content has one of the sums; the error names the file."""
    for known in sums:
        algorithm = known.partition(":")[0]
        found = f"{algorithm}:{hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()}"
        if found == known:
            return
    wrong = f"{' or '.join(sums)} expected, {found} found"
    raise ValueError(f"{path} is not the published file: {wrong}; delete it and get it again")


def download(urls: Iterable[str], path: Path, known: str, *, needs: str) -> Path:
    """Fetch a file from the first address that answers, and put it in place only once its sum is right.

    needs says what to do by hand: "put a.gz and b.gz into DIR". FileNotFoundError if no address answers,
    ValueError if what came has another sum. Progress goes to stderr.
    """
    failures = []
    for url in urls:
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _copy(url, partial)
            found = _sum(partial, known.partition(":")[0])
            if found != known:
                raise ValueError(
                    f"{url} sent another file than the published one: {known} expected, {found} found"
                )
            os.replace(partial, path)
            return path
        except OSError as error:
            failures.append(f"{url}: {getattr(error, 'reason', error)}")
        finally:
            partial.unlink(missing_ok=True)
    raise FileNotFoundError(
        f"{path} is not there and could not be downloaded ({'; '.join(failures)}): {needs}"
    )


def by_hand(names: str, folder: Path) -> str:
    """What to do where data are missing and nothing can be downloaded."""
    return f"put {names} into {folder}, or name another place by data_dir=... or ZOO_DATA_DIR"


def _sum(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return f"{algorithm}:{digest.hexdigest()}"


def _copy(url: str, path: Path) -> None:
    """Copy what an address sends into a file, with a line of progress on stderr; OSError if it ends early."""
    with urllib.request.urlopen(url, timeout=30) as reply, path.open("wb") as file:
        total, done = int(reply.headers.get("Content-Length") or 0), 0
        while block := reply.read(1 << 20):
            file.write(block)
            done += len(block)
            print(f"\r{url}: {done / 1e6:.1f} of {total / 1e6:.1f} MB", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    if done < total:
        raise OSError(f"the connection ended after {done} of {total} bytes")
