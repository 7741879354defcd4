"""Checkpoints as files: written whole or not at all, tested before they are read, never executed.

A checkpoint is a dictionary of plain things (tensors, numbers, strings, lists, dictionaries) in torch's zip
format, whose stored checksums `good` compares with every byte. A folder belongs to one run at a time.
"""

import errno
import os
import re
import shutil
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

PLAIN = (str, int, float, bool, bytes, complex, type(None), Tensor, torch.dtype, torch.device, torch.Size)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, and largest file allowed


def write(content: dict[str, Any], path: str | os.PathLike) -> None:
    """Write a checkpoint so that `path` is always either the old file or the whole new one, even after kill
    -9.

    A temporary file beside the target (a rename across file systems would be a copy) is filled, brought to
    the disk and renamed; then the folder is brought to the disk too.

    Raises TypeError if something in it is not plain, since `load` would refuse it; OSError if it cannot be
    written, with free and needed bytes where the disk is full: the file that was there before is then
    untouched.
    """
    if odd := _odd(content):
        raise TypeError(
            f"a checkpoint holds plain values only, and its {odd}; store a number, a string or a tensor"
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, Exception) and (sentence := _full(error, content, path)):
            raise OSError(sentence) from error
        raise


def link(source: Path, path: Path) -> None:
    """Give a written checkpoint a second name, as safely as `write`; where links are, for no space."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            with open(source, "rb") as old, open(temporary, "wb") as new:
                shutil.copyfileobj(old, new)
                new.flush()
                os.fsync(new.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)  # it is still there where both names were the same file already


def clean(folder: Path) -> None:
    """Remove what killed runs left half written."""
    for leftover in folder.glob(".*.tmp-*"):
        leftover.unlink(missing_ok=True)


def good(path: str | os.PathLike) -> str | None:
    """None if the file is a whole checkpoint, else the reason in a few words; 0.03 s per 100 MB.

    torch reads a file with a flipped byte without a word, and fails on other damage in four different ways.
    """
    path = Path(path)
    if path.is_dir():
        return "it is a folder, not a file"
    if not path.exists():
        return "it does not exist"
    try:
        with open(path, "rb") as file:
            head = file.read(64)
        if not head:
            return "it is empty"
        if head.startswith(b"version https://git-lfs"):
            return "it is a pointer of Git LFS, not the file itself (git lfs pull brings it)"
        if not head.startswith(b"PK\x03\x04"):
            return "it is not a checkpoint but some other kind of file"
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                return f"its part {broken} is damaged (wrong checksum)"
            if not any(name.endswith("/data.pkl") for name in archive.namelist()):
                return "it is a zip archive, but not of a checkpoint"
    except PermissionError:
        return "it may not be read"
    except Exception as error:  # damaged headers raise whatever their nonsense leads to
        return f"it is cut short or damaged ({type(error).__name__}: {error})"
    return None


def load(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint to the CPU, after `good`, and never run code that is in it.

    Raises FileNotFoundError if there is none, ValueError if it is damaged or holds more than plain values.
    """
    if reason := good(path):
        kind = ValueError if Path(path).exists() else FileNotFoundError
        raise kind(f"the checkpoint {path} cannot be loaded: {reason}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"the checkpoint {path} is refused: it holds more than plain values, so reading it could run code"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"the checkpoint {path} cannot be loaded: it holds a {type(content).__name__}, not a dict"
        )
    return content


def steps(folder: Path) -> list[Path]:
    """The numbered checkpoints of a folder, newest first."""
    return sorted((p for p in folder.glob("step-*.ckpt") if re.fullmatch(r"step-\d+", p.stem)), reverse=True)


def newest(folder: str | os.PathLike) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest good checkpoint of a folder (the best if no numbered one is); what was skipped, and why."""
    skipped = []
    for path in [*steps(Path(folder)), Path(folder) / "best.ckpt"]:
        if not (reason := good(path)):
            return path, skipped
        if os.path.lexists(path):
            skipped.append((path, reason))
    return None, skipped


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _odd(value: Any, name: str = "") -> str | None:
    """Where something stands that is not plain, and what it is."""
    if isinstance(value, dict):
        inside = [*((key, f"{name} key") for key in value), *((v, f"{name}.{k}") for k, v in value.items())]
    elif isinstance(value, list | tuple | set):
        inside = [(v, f"{name}[{i}]") for i, v in enumerate(value)]
    else:
        # a numpy number is a float by inheritance, yet loading refuses it
        plain = isinstance(value, Tensor) or type(value) in PLAIN
        return (
            None
            if plain
            else f"{name.lstrip('.') or 'content'} is a {type(value).__module__}.{type(value).__name__}"
        )
    return next((odd for v, where in inside if (odd := _odd(v, where))), None)


def _bytes(value: Any) -> int:
    """Bytes of the tensors in a checkpoint, which is nearly all of it."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_bytes, inside))


def _full(error: Exception, content: dict[str, Any], path: Path) -> str | None:
    """The sentence for a full disk, or None if that was not the fault; torch hides it in a RuntimeError."""
    free, needed = shutil.disk_usage(path.parent).free, _bytes(content)
    chain = [error, error.__context__, error.__cause__]
    if free >= needed and not any(isinstance(e, OSError) and e.errno in FULL for e in chain):
        return None
    survivor, _ = newest(path.parent)
    still = f"{survivor} is still good" if survivor else "there is no earlier checkpoint"
    return (
        f"the disk is full: {path} needs about {needed} bytes and {free} are free; {still}; "
        "make room and run the same command again"
    )
