"""What can be named on the command line: the files of configs/, and of the folders that --config-dir adds."""

import sys
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def folders() -> list[Path]:
    """configs/ and, where the command line names one, the user's own folder."""
    words = sys.argv[1:]
    own = [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("--config-dir", "-cd")]
    own += [word.split("=", 1)[1] for word in words if word.startswith("--config-dir=")]
    return [CONFIGS, *map(Path, own)]


def group_names() -> list[str]:
    """All config groups: dataset, model, optimizer ..."""
    return sorted({path.name for folder in folders() for path in folder.glob("*/") if path.is_dir()})


def options(group: str) -> list[str]:
    """The names of one group's files, those in folders of it as `folder/name`."""
    found = [
        path.relative_to(folder / group) for folder in folders() for path in folder.glob(f"{group}/**/*.yaml")
    ]
    return sorted({path.with_suffix("").as_posix() for path in found})


def bringing(group: str) -> list[str]:
    """What brings a choice of a group with it: ["model=transformer"] for mixer."""
    found = {
        f"{path.parent.name}={path.stem}"
        for folder in folders()
        for path in folder.glob("*/*.yaml")
        if f"/{group}@" in path.read_text()
    }
    return sorted(found)


def targets() -> list[tuple[str, str, str]]:
    """(group, name, class) of every choice that is a file with a `_target_`: ("position", "rope", "Rotary")."""
    import yaml

    found = set()
    for folder in folders():
        for path in folder.glob("*/*.yaml"):
            node = yaml.safe_load(path.read_text())
            if isinstance(node, dict) and "_target_" in node:
                found.add((path.parent.name, path.stem, str(node["_target_"]).rpartition(".")[2]))
    return sorted(found)


def spaces() -> dict[str, tuple[tuple[int, ...], Any]]:
    """(shape, levels) of every dataset, by name, read off its YAML; a fact that is computed counts as 0."""
    import yaml

    found: dict[str, tuple[tuple[int, ...], Any]] = {}
    for folder in folders():
        for path in sorted(folder.glob("dataset/*.yaml")):
            facts = yaml.safe_load(path.read_text()) or {}
            shape = tuple(size if isinstance(size, int) else 0 for size in facts.get("shape") or ())
            levels = facts.get("levels")
            found[path.stem] = (shape, levels if isinstance(levels, int) or levels is None else 0)
    return found
