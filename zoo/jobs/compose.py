"""From Hydra's config to the plain one that a job takes; a resumed run's is the one it stored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from zoo.config.explain import leaves
from zoo.jobs.data import relocated
from zoo.runs import Run, execution


def plain(config: DictConfig) -> dict[str, Any]:
    """A config, resolved, of dicts and lists alone."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def name_of(config: dict[str, Any]) -> str:
    """The run's name: as given, else <model>-<dataset>, as they were chosen."""
    from hydra.core.hydra_config import HydraConfig

    choices = HydraConfig.get().runtime.choices
    return config["name"] or f"{choices['model']}-{choices['dataset']}"


def resumed(config: dict[str, Any], overrides: list[str]) -> tuple[dict[str, Any], Path]:
    """The stored config of the run `resume`, with those words of the command line that leave the experiment alone.

    Raises ValueError for a word that would make it another experiment.
    """
    run = Run.open(config["resume"])
    stored = run.config
    for key in sorted(overridden(overrides)):
        for name in [key, *(name for name, _ in leaves(select(config, key), key))]:
            new, old = select(config, name), select(stored, name)
            if isinstance(new, dict) or new == old or name == "data_dir":
                continue
            if not execution(name):
                raise ValueError(
                    f"{name}={new}: the run has {old}, and another value is another run; init={run.folder} starts one"
                )
            update(stored, name, new)
    return relocated(stored, config["data_dir"]), run.folder


def overridden(overrides: list[str]) -> Iterator[str]:
    """The keys that the words of a command line set."""
    for word in overrides:
        key = word.partition("=")[0].lstrip("+~").split("@")[0].replace("/", ".")
        if key not in ("resume", "debug"):
            yield key


def select(node: Any, name: str) -> Any:
    """A value by its dotted key; None where there is none."""
    for part in name.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def update(node: dict[str, Any], name: str, value: Any) -> None:
    """Set a value by its dotted key."""
    *parents, last = name.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
