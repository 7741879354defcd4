"""Files that are computed once: written whole or not at all, and named by a hash of what they were made from.

So a stale one is never read and none needs deleting. Nothing here imports torch.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def home() -> Path:
    """Where they lie: ZOO_CACHE_DIR, else zoo/ in the user's cache folder. The data's own folder may be read-only."""
    own = os.environ.get("ZOO_CACHE_DIR")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoo"


def keep(path: Path, write: Callable[[Any], Any]) -> bool:
    """Write a file so that it is there whole or not at all; False where the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            try:
                write(file)
                file.close()
                os.chmod(file.name, 0o644)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError:  # the cache is then done without
        return False
    return True


def digest(*parts: Any) -> str:
    """A hash of several buffers, 64 hex digits; the length of each counts too."""
    hashed = hashlib.blake2b(digest_size=32)
    for part in parts:
        view = memoryview(part).cast("B")
        hashed.update(len(view).to_bytes(8, "little"))
        hashed.update(view)
    return hashed.hexdigest()
