"""What there is to choose: uv run scripts/list.py [matrix | model | mixer | dataset ...] [--bidirectional]

Each group is a folder of configs/, or of your own by --config-dir, and each choice is told by its file's first line.
The matrix tells which position encoding goes with which token mixer, and in which form, as the classes say it.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from zoo.config.catalogue import CONFIGS, folders, group_names, options
from zoo.config.explain import leaves

WIDTH = 64  # of the networks that are built to find out what fits
FORMS = {
    "input": "in the input of the first block, or of each",
    "turn": "queries and keys are turned",
    "bias": "added to the scores, by distance",
    "score": "added to the scores or values, by content",
    "own": "in a form of the mixer's own, which its class describes",
    "free": "nothing is done: the mixer tells order by itself, or by what is hidden from it",
    "-": "refused",
}


def choices(group: str) -> dict[str, Any]:
    """The classes that a group's files name."""
    import yaml
    from hydra.utils import get_object

    nodes = {name: yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text()) for name in options(group)}
    return {name: get_object(node["_target_"]) for name, node in nodes.items() if node.get("_partial_")}


def form(mixer: Any, position: Any, causal: bool) -> str:
    """In which form an encoding goes with a mixer, as in FORMS; found out by building a network of both."""
    from zoo.nn import Backbone

    try:
        Backbone(WIDTH, 1, mixer, position=position, causal=causal, grid=(8, 8))
    except ValueError:
        return "-"
    if position.places - {"embed"} - set(getattr(mixer, "honours", ())):
        return "own"
    for places, name in (({"scores", "values"}, "score"), ({"bias"}, "bias"), ({"rotate"}, "turn")):
        if places & position.places:
            return name
    return "input" if position.places else "free"


def matrix(causal: bool) -> Iterator[str]:
    """A row for each mixer, a column for each encoding; * is what a mixer takes by itself."""
    from zoo.nn import NoPosition

    mixers, positions = choices("mixer"), choices("position")
    width = max(map(len, mixers)) + 2
    head = "".join(f"{name[:6]:7}" for name in positions)
    yield f"{'causal' if causal else 'bidirectional':{width + 2}}{head}".rstrip()
    for name, mixer in mixers.items():
        own = getattr(mixer, "own", NoPosition)
        cells = [(form(mixer, p, causal), "*" if p is own else "") for p in positions.values()]
        cells = [f"{cell}{mark if cell != '-' else ''}" for cell, mark in cells]
        yield (f"  {name:{width}}" + "".join(f"{cell:7}" for cell in cells)).rstrip()
    yield from (f"    {name:6} {meaning}" for name, meaning in FORMS.items())
    yield "    *      what position=auto takes"


def sentence(group: str, name: str) -> str:
    """What a file of configs/, or of the user's own folder, says of itself in its first comment."""
    (*_, path) = (path for folder in folders() if (path := folder / group / f"{name}.yaml").is_file())
    for line in path.read_text().splitlines():
        if not line.startswith("# @package"):
            return line.removeprefix("# ") if line.startswith("#") else "(its file opens without a sentence)"
    return "(its file is empty)"


def described(group: str) -> Iterator[str]:
    """Each choice of a group and what it is, with its source."""
    names = options(group)
    width = max(map(len, names), default=0) + 2
    for name in names:
        yield f"  {name:{width}}{sentence(group, name)}"


def datasets() -> Iterator[str]:
    """Each dataset, and the facts of each; those that follow from data that may not be here are told so."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from zoo.config import resolvers

    resolvers.register()
    names = options("dataset")
    own = ",".join(f"file://{folder.resolve()}" for folder in folders()[1:])
    path = [f"hydra.searchpath=[{own}]"] if own else []
    width = max(map(len, names)) + 2
    yield from described("dataset")
    yield ""
    columns = ("kind", "shape", "levels", "classes", "unit", "sizes")
    yield f"  {'':{width}}" + "".join(f"{column:{14}}" for column in columns).rstrip()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for name in names:
            config = compose("train", overrides=[*path, f"dataset={name}"])
            facts = OmegaConf.to_container(config.dataset, resolve=False)
            told = [fact(config, column, facts.get(column)) for column in columns]
            yield f"  {name:{width}}" + "".join(f"{text:{14}}" for text in told).rstrip()


def fact(config: Any, column: str, raw: Any) -> str:
    """A fact in few letters."""
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError

    texts = [str(value) for _, value in leaves({"": raw})]
    if any("vocabulary_size" in text for text in texts):
        return "by its text"
    if "???" in texts:
        return "to be given"
    try:
        node = OmegaConf.select(config, f"dataset.{column}")
    except InterpolationResolutionError:  # of files that are not here
        return "by its files"
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if isinstance(plain, dict):
        return " / ".join("?" if size is None else f"{size:,}" for size in plain.values())
    if isinstance(plain, list):
        return " x ".join(map(str, plain))
    return "-" if plain is None else str(plain)


def experiments() -> Iterator[str]:
    """Each row of a paper that there is a command for."""
    for name in options("experiment"):
        yield f"  experiment={name}"
        yield f"      {sentence('experiment', name)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the sections that are asked for, all of them by default."""
    sections = ("matrix", *group_names())
    parser = argparse.ArgumentParser(prog="list.py", description="What there is to choose.")
    parser.add_argument("sections", nargs="*", metavar="section", help=", ".join(sections))
    parser.add_argument("--bidirectional", action="store_true", help="the matrix of networks that see all")
    parser.add_argument("--config-dir", metavar="FOLDER", help="your own configs, told beside these")
    told = parser.parse_args(arguments)
    if unknown := [name for name in told.sections if name not in sections]:
        parser.error(f"{unknown[0]} is no section; there are {', '.join(sections)}")
    own = {
        "matrix": lambda: matrix(not told.bidirectional),
        "dataset": datasets,
        "experiment": experiments,
    }
    for name in told.sections or sections:
        print(name)
        print("\n".join(own[name]() if name in own else described(name)), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
