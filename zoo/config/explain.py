"""Errors in words: what was given, where, what is allowed, and the nearest name."""

import difflib
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.config.catalogue import CONFIGS, bringing, folders, group_names, spaces, targets


class Told(Exception):
    """An error whose sentence has been printed already."""


# Errors raised on purpose, whose message is a sentence for the user.
PLAIN = (ValueError, OSError, LookupError, ImportError, FloatingPointError)

# What other packages bring.
ELSEWHERE = {
    "hydra/launcher/submitit_slurm": "hydra/launcher=slurm needs submitit's plugin: pip install 'zoo[slurm]'",
    "hydra/launcher/ray": "hydra/launcher=ray needs Hydra's plugin for Ray: pip install 'zoo[ray]'",
    "hydra/sweeper/optuna": "hydra/sweeper=search needs Hydra's plugin for Optuna: pip install 'zoo[search]'",
    "hydra/launcher/joblib": "hydra/launcher=joblib breaks loaders with workers; hydra/launcher=pool does as much",
}


def sentence(error: BaseException, config_name: str | None = None) -> str:
    """One error, in at most a few lines, the first naming the fault."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, HydraException | OmegaConfBaseException):
        return composition(error, config_name)
    text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, PLAIN) and str(text).strip():
        return f"error: {str(text).strip()}{fitting(error)}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    where = f" ({Path(own[-1].filename).name}:{own[-1].lineno}, in {own[-1].name})" if own else ""
    head = " ".join(str(text).split())[:500]
    return f"error: {type(error).__name__}: {head}{where}\nthe whole traceback: the same command with debug=trace"


def composition(error: BaseException, config_name: str | None) -> str:
    """What Hydra or OmegaConf refused."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import MissingMandatoryValue, ValidationError

    text = re.sub(r"\s+(full_key: \S+|object_type=\S+|reference_type=\S+)", "", str(error))
    text = re.sub(r"^\w+ raised while resolving interpolation: ", "", text)
    cause = error.__cause__
    if isinstance(error, MissingConfigException):
        found = re.search(r"Could not find '([^']+)'", text)
        asked = found.group(1) if found else str(error.missing_cfg_file)
        group, _, name = asked.rpartition("/")
        names = sorted(error.options or [])
        if not group:
            return f"error: no config named {asked!r}"
        if asked in ELSEWHERE:
            return f"error: {ELSEWHERE[asked]}"
        return f"error: {group}={name}: there is no such {group}{near(name, names)}\nthere are: {', '.join(names)}"
    if isinstance(error, OverrideParseException):
        return f"error: cannot read {error.override!r}: {' '.join(text.split())}"
    if isinstance(error, MissingMandatoryValue):
        return f"error: {' '.join(text.split())}"
    if found := re.search(r"Could not override '([^']+)'\.? ?(No match in the defaults list)?", text):
        key = found.group(1).split("@")[0]
        if found.group(2):
            who = bringing(key)
            told = f"; those that have one: {', '.join(who)}" if who else near(key, group_names())
            return f"error: {key}=...: nothing that is chosen here has a {key}{told}"
        return f"error: {key}: there is no such key{near(key, keys(config_name))}"
    if found := re.search(r"Error merging override (.+)", text):
        reason = str(cause).splitlines()[0] if cause is not None else text
        return f"error: {found.group(1)}: {reason}"
    if isinstance(error, ValidationError):
        return f"error: {' '.join(text.split())}"
    if found := re.search(r"Key '([^']+)' is not in struct", text):
        return f"error: {found.group(1)}: there is no such key{near(found.group(1), keys(config_name))}"
    return "error: " + " ".join(text.split())


def missing(config: Any) -> None:
    """Raise ValueError naming every `???` that was not given."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config, resolve=False)
    if names := [name for name, value in leaves(plain) if value == "???"]:
        raise ValueError("missing: " + ", ".join(f"{name}=..." for name in names) + " must be given")


def near(name: str, names: list[str]) -> str:
    """ ", did you mean ...?" where there is a near name, else nothing."""
    last = {n.rsplit(".", 1)[-1]: n for n in names}
    hits = difflib.get_close_matches(name, names, 1, 0.6)
    hits = hits or [last[n] for n in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(last), 1, 0.6)]
    return f", did you mean {hits[0]}?" if hits else ""


def fitting(error: BaseException) -> str:
    """The datasets, or the other choices of classes, that would fit, where an error says that one does not."""
    if classes := getattr(error, "instead", ()):
        known = [f"{group}={name}" for group, name, made in targets() if made in classes]
        return f"\nchoices that fit: {', '.join(known)}" if known else ""
    fits = getattr(error, "fits", None)
    if not callable(fits):
        return ""
    from zoo.types import Space  # torch is there already: a model was being made

    names = [name for name, space in spaces().items() if fits(Space(*space))]
    return f"\ndatasets that fit: {', '.join(names)}" if names else ""


def keys(config_name: str | None) -> list[str]:
    """Every dotted key of the config that the command line's choices compose."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    if config_name is None:
        return []
    own = ",".join(f"file://{folder.resolve()}" for folder in folders()[1:])
    path = [f"hydra.searchpath=[{own}]"] if own else []
    choices = [
        w for w in sys.argv[1:] if re.fullmatch(r"[\w/@]+=[\w\-/]+", w) and w.split("=")[0] in group_names()
    ]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            config = compose(config_name, overrides=path + choices)
        except Exception:  # a choice itself is wrong: the keys of the plain config then
            config = compose(config_name, overrides=path)
    return [name for name, _ in leaves(OmegaConf.to_container(config, resolve=False), inner=True)]


def leaves(node: Any, path: str = "", inner: bool = False) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of a plain nested mapping's leaves; with `inner` of the mappings in it too."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        name = f"{path}.{key}" if path else str(key)
        if not isinstance(value, dict | list) or not value or inner:
            yield name, value
        yield from leaves(value, name, inner)
