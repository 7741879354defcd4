"""From Hydra's config to the plain one that a job takes; a resumed run's is the one it stored."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from zoo.config.build import targets
from zoo.config.explain import leaves
from zoo.runs import Run, execution

COUNTED = ("train_flops", "match")  # steps and widths follow from these when a run begins
CHOICES = ("zoo.jobs.compose.perceptual",)  # targets that stand for others, by what is on this machine


def plain(config: DictConfig) -> dict[str, Any]:
    """A config, resolved, of dicts and lists alone; what depends on the machine is chosen, and then stands in it."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    for _, node in list(targets(container)):
        if node["_target_"] in CHOICES:
            chosen = perceptual(**{key: value for key, value in node.items() if key != "_target_"})
            node.clear()
            node.update(chosen)
    return {str(key): value for key, value in container.items()}


def perceptual(*, root: str, run: str | None, weights: str, allow: list[str]) -> dict[str, Any]:
    """The config of LPIPS where its weights lie in a folder, else that of a classifier's run.

    ValueError where there is neither.
    """
    from zoo.nn.perceptual import FILES

    if all((Path(root).expanduser() / name).is_file() for name in FILES):
        return {"_target_": "zoo.nn.LPIPS", "root": root}
    if run is None:
        raise ValueError(
            f"{root} has not the weights of LPIPS ({', '.join(FILES)}), and no classifier's run stands in for them: "
            "scripts/prepare.py features dataset=<one> trains one, perceptual.run=<its folder> names it; or "
            "perceptual=none"
        )
    return {"_target_": "zoo.pretrained", "run": run, "weights": weights, "allow": allow}


def name_of(config: Mapping[str, Any] | DictConfig, choices: Mapping[str, str] | None = None) -> str:
    """The run's name: as given, else <model>-<dataset>, as they were chosen (here, or in another config)."""
    from hydra.core.hydra_config import HydraConfig

    choices = choices or HydraConfig.get().runtime.choices
    return config["name"] or f"{choices['model']}-{choices['dataset']}"


def choices() -> dict[str, str]:
    """The words that chose the blocks of the config of this command, by the blocks' keys: {"mixer": "softmax"}."""
    from hydra.core.hydra_config import HydraConfig

    told = {}
    for group, word in HydraConfig.get().runtime.choices.items():
        name, _, place = group.partition("@")
        if isinstance(word, str) and not name.startswith(
            "hydra"
        ):  # what lies in another block has no key of its own
            told[place.removeprefix("_global_.") if place.startswith("_global_.") else name] = word
    return told


def resumed(config: dict[str, Any], overrides: list[str]) -> tuple[dict[str, Any], Path]:
    """The stored config of the run `resume`, with those words of the command line that leave the experiment alone.

    Raises ValueError for a word that would make it another experiment.
    """
    from zoo.jobs.data import relocated  # torch

    run = Run.open(config["resume"])
    stored, updated = run.config, []
    for key in sorted(overridden(overrides)):
        for name in [key, *(name for name, _ in leaves(select(config, key), key))]:
            new, old = select(config, name), select(stored, name)
            if isinstance(new, dict) or new == old or name == "data_dir":
                continue
            if not execution(name) or name.partition(".")[0] in COUNTED:
                raise ValueError(
                    f"{name}={new}: the run has {old}, and another value is another run; init={run.folder} starts one"
                )
            update(stored, name, new)
            updated.append(f"{name}=")
    if (row := stored.get("experiment")) and (other := changed(updated)):
        row["changed"] = sorted({*other, *row.get("changed", ())})
    return relocated(stored, config["data_dir"]), run.folder


def changed(overrides: list[str]) -> list[str]:
    """The words' keys by which a run of an experiment is no longer the paper's row: none for another seed or device."""
    free = ("experiment", "seed", "trainer", "evaluate.n", "hydra")
    return sorted(
        key
        for key in overridden(overrides)
        if key not in free and (not execution(key) or key.startswith("evaluate"))
    )


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
