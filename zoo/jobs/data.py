"""From a config's dataset to loaders held to its facts."""

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.config import build
from zoo.training.loaders import Loaders

FACTS = ("name", "kind", "shape", "levels", "classes", "targets", "y", "unit", "sizes")


def loaders(config: Mapping[str, Any], *, stored: bool = False, allow: Sequence[str] = ()) -> Loaders:
    """The loaders of a whole resolved training config."""
    dataset = config["dataset"]
    return Loaders(
        build(dataset["source"], "dataset.source", stored=stored, allow=allow),
        {name: dataset.get(name) for name in FACTS},
        batch_size=config["batch_size"],
        seed=config["seed"],
        num_workers=config["num_workers"],
        accumulate=config["trainer"]["accumulate_grad_batches"],
        data_device=config["data_device"],
    )


def relocated(config: dict[str, Any], data_dir: str) -> dict[str, Any]:
    """A stored config whose data lie under another data_dir than where it was trained."""
    source, before = config["dataset"]["source"], config["data_dir"]
    root = source.get("root")
    if isinstance(root, str) and f"{root}/".startswith(f"{before}/"):
        source["root"] = data_dir + root[len(before) :]
    config["data_dir"] = data_dir
    return config
