"""A sweep is a set of identities: its jobs are composed, those that are finished are told, the others launched.

Nothing here imports torch: a sweep with nothing left to do is over before that were.
"""

import copy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from zoo.config import explain, schema
from zoo.config.sweeps import Place
from zoo.jobs import compose, known
from zoo.runs import lock
from zoo.runs.sweep import Record

PATIENCE = 0.5  # seconds between two looks at a job that another process does
Launch = Callable[[list[list[str]], int], Any]


class Composer:
    """The config of each job, without composing anew what all jobs share: their choices.

    context   Hydra's; its loader composes
    master    the config of the sweep, whose Hydra options hold for each job
    """

    def __init__(self, context: Any, master: DictConfig) -> None:
        self.loader, self.master = context.config_loader, master
        self.bases: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, words: Sequence[str]) -> tuple[dict[str, Any], str]:
        """A job's whole resolved config, and its run's name. Raises what Hydra and the types of keys refuse."""
        config, name = self.parts(words)
        return compose.plain(config), name

    def parts(self, words: Sequence[str]) -> tuple[DictConfig, str]:
        """The same, not resolved yet."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        parsed = OverridesParser.create().parse_overrides(list(words))
        choices = tuple(word.input_line for word in parsed if self._chooses(word))
        if choices not in self.bases:
            self.bases[choices] = self.loader.load_sweep_config(self.master, list(choices))
        config = copy.deepcopy(self.bases[choices])
        self.loader._apply_overrides_to_config([word for word in parsed if not self._chooses(word)], config)
        chosen = config.hydra.runtime.choices
        with open_dict(config):
            del config["hydra"]
        explain.missing(config)
        schema.check(config, schema.Train)
        return config, compose.name_of(config, chosen)

    def _chooses(self, word: Any) -> bool:
        """Whether a word names a file of configs/, or is Hydra's, and no plain value."""
        group = word.package is not None or self.loader.repository.group_exists(word.key_or_group)
        return bool(group or word.is_hydra_override())


def run(jobs: Sequence[Sequence[str]], composed: Composer, launch: Launch) -> None:
    """Do what is missing of a sweep's jobs, each the words of its command line; what became of each is recorded.

    launch    starts jobs with a launcher of Hydra, the first of them with this number, and waits for them
    A job that cannot be composed is a failed one, where others can; where none can, the first error is raised.
    """
    place = Place.now
    assert place is not None
    looked = [look(words, composed) for words in jobs]
    errors = [told["error"] for told in looked if "error" in told]
    if len(errors) == len(jobs) and len(set(map(str, errors))) == 1:
        raise errors[0]
    looked.sort(key=lambda told: "outcome" in told)  # launchers number what they launch, from the first on
    for number, told in enumerate(looked):
        if told.pop("error", None) is not None:
            print(told["reason"], file=sys.stderr, flush=True)
        Record(place, number).write(**{"outcome": "running", "reason": "it did not begin", **told})
    missing = [told["overrides"] for told in looked if "outcome" not in told]
    if missing:
        launch(missing, 0)
    for number, words in enumerate(missing):
        later(Record(place, number), words, composed, launch)


def look(words: Sequence[str], composed: Composer) -> dict[str, Any]:
    """What is known of a job before it begins; it has an outcome where nothing is to be done."""
    told: dict[str, Any] = {"overrides": list(words)}
    try:
        config, name = composed(words)
        found = known.look(config, name)
    except Exception as error:
        return told | {
            "outcome": "failed",
            "reason": explain.sentence(error).splitlines()[0],
            "error": error,
        }
    if found is None:
        return told
    told |= {"run": str(found[0].folder), "identity": found[1]}
    if not known.answered(config, found[0]):
        return told
    print(f"{found[0].folder} is finished already (rerun=true repeats it)")
    return told | {"outcome": "skipped", "reason": "finished before", "seconds": 0.0}


def later(record: Record, words: list[str], composed: Composer, launch: Launch) -> None:
    """A job that another process did meanwhile is taken up when that process has ended."""
    while record.read().get("outcome") == "busy":
        if not lock.free(Path(record.read()["lock"])):
            time.sleep(PATIENCE)
            continue
        record.write(**{"outcome": "running", **look(words, composed)})
        if record.read()["outcome"] == "running":
            launch([words], int(record.path.stem))
