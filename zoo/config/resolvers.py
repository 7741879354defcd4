"""Facts that a YAML cannot state because they depend on the machine: computed when read, without torch."""

import json
import sys
from pathlib import Path
from typing import Any


def vocabulary_size(source: Any) -> int:
    """`levels: ${vocabulary_size:${dataset.source}}`: how many symbols the vocabulary of a zoo.data.Text has.

    Read off its file, made from the training text the first time. Raises what the corpus raises if there is
    no text.
    """
    from omegaconf import OmegaConf

    from zoo.config.build import build
    from zoo.data.vocabulary import vocabulary_size

    plain: Any = OmegaConf.to_container(source, resolve=True, throw_on_missing=True)
    return vocabulary_size(build({key: plain[key] for key in ("corpus", "tokens", "root")}))


def python_version() -> str:
    """`${python_version:}`: 3.11; for what differs from one version to the next."""
    return "{}.{}".format(*sys.version_info)


def minus(whole: int, part: int) -> int:
    """`${minus:60000,${dataset.source.holdout}}`: what is left to train on."""
    return whole - part


def pairs(root: str, key: str) -> Any:
    """`${pairs:${dataset.source.root},shape}`: a fact of the pairs that scripts/prepare.py reflow wrote into a folder.

    FileNotFoundError if it wrote none there.
    """
    path = Path(root) / "facts.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; scripts/prepare.py reflow run=runs/<one> writes it")
    return json.loads(path.read_text())[key]


def register() -> None:
    """Make the resolvers known to OmegaConf; again is harmless."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("vocabulary_size", vocabulary_size, replace=True)
    OmegaConf.register_new_resolver("python_version", python_version, replace=True)
    OmegaConf.register_new_resolver("minus", minus, replace=True)
    OmegaConf.register_new_resolver("pairs", pairs, replace=True)
