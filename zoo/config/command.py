"""The command line: Hydra's, with every error told in a sentence and with an exit status that tells.

Nothing heavy is imported here: `--help`, `--cfg job`, shell completion and errors of composition answer at once.
"""

import functools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.config import explain, help, resolvers, schema, sweeps
from zoo.config.catalogue import CONFIGS

# Options of a model's own methods: whatever name they have, the model's signature judges it.
FREE = ("log_prob.", "sample.", "evaluate.log_prob.", "evaluate.sample.")
# Groups whose choice stands in a key that is not called as they are.
PLACES = {"objective": "objective@model", "evaluation": "evaluation@evaluate"}


def command(config_name: str) -> Callable[[Callable[[Any], Any]], Callable[[], None]]:
    """A program whose only argument is the config composed from configs/<config_name>.yaml and the command line.

    The function gets a DictConfig. What it raises is printed as one sentence (with `debug=trace`: as a traceback)
    and ends the program with status 1. SystemExit passes with its own status. In a sweep what became of a job is
    recorded, whatever it raised, and the others still run; the summary and the status tell in the end.
    """

    def decorate(function: Callable[[Any], Any]) -> Callable[[], None]:
        @functools.wraps(function)
        def main() -> None:
            if {"--help", "-h"} & set(sys.argv[1:]):
                print(help.text(config_name))
                return
            trace = "debug=trace" in sys.argv
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing; explain prints
            # OpenMP's threads would spin while they wait: on busy cores that is ten times slower
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            words = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
            sys.argv[1:] = [readable(word) for word in words]
            resolvers.register()
            import hydra

            @functools.wraps(function)
            def job(config: Any) -> Any:
                if (place := sweeps.job()) is not None:
                    return recorded(function, config, config_name, trace, *place)
                try:
                    return checked(function, config, config_name)
                except BrokenPipeError:  # whoever read the output, `head` say, has enough
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                    raise SystemExit(128 + 13) from None
                except Exception as error:
                    report(error, trace)
                    raise SystemExit(1) from None

            sweeps.Place.now = None
            try:
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
            except explain.Told:
                raise SystemExit(1) from None
            except Exception as error:
                report(error, trace, config_name)
                raise SystemExit(1) from None
            finally:
                good = sweeps.told()
            if not good:
                raise SystemExit(1)

        return main

    return decorate


def readable(word: str) -> str:
    """A word as Hydra can take it: options of the model's methods are added, key=~/x has its home folder, and a
    group is named with its place."""
    key, equal, value = word.partition("=")
    if equal and (key in PLACES or value.startswith("~/")):
        word = f"{PLACES.get(key, key)}={os.path.expanduser(value)}"
    return f"++{word}" if word.startswith(FREE) else word


def checked(function: Callable[[Any], Any], config: Any, config_name: str) -> Any:
    """Call a program's function with a config that has all that it must have, of the right types."""
    explain.missing(config)
    schema.check(config, schema.SCHEMAS[config_name])
    return function(config)


def recorded(
    function: Callable[[Any], Any], config: Any, config_name: str, trace: bool, place: Path, number: int
) -> Any:
    """One job of a sweep: its outcome in its record, its whole traceback in its log.

    Returns the number that a search compares, None where the job failed: to the scheduler every job has ended well.
    """
    from hydra.core.hydra_config import HydraConfig

    from zoo.runs import Run, lock, sweep

    record = sweep.Record(place, number)
    record.begin(HydraConfig.get().overrides.task)
    try:
        found = checked(function, config, config_name)
        if not isinstance(found, Run):  # of evaluate.py, say
            record.end("done")
            return None
        value = sweep.objective(found, config.optimize)
        record.end(**sweep.ended(found), value=value)
        return value
    except lock.Busy as error:
        print(error, flush=True)
        record.end("busy", str(error), lock=str(error.lock))
    except Exception as error:
        report(error, trace)
        with open(record.log, "a") as log:
            traceback.print_exception(error, file=log)
        record.end("failed", explain.sentence(error).splitlines()[0])
    except BaseException as error:
        record.end("stopped", f"stopped by {type(error).__name__} {error}".strip())
        raise
    return None


def report(error: Exception, trace: bool, config_name: str | None = None) -> None:
    """Print an error to stderr: a sentence, or with `trace` all of it."""
    sys.stdout.flush()
    if trace:
        traceback.print_exception(error)
    print(explain.sentence(error, config_name), file=sys.stderr, flush=True)
