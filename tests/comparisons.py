"""Runs for tables of comparison, written by hand."""

import json
from pathlib import Path
from typing import Any

import commands

PAIRS = {
    ("Rotary", "Attention"): 3.0,
    ("ALiBi", "Attention"): 2.5,
    ("Rotary", "Mamba"): 2.0,
    ("ALiBi", "Mamba"): 2.25,
}


class Folder:
    """Writes run directories below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, model: str, value: float | None, *, seed: int = 0, at: str = "", **more: Any) -> Path:
        """One run with one number in nats; `more` overrides parts of number, config and results."""
        number = {"name": "nats", "value": value, "unit": "nats/example", "kind": "exact", "split": "test"}
        number |= {
            "count": 100,
            "protocol": {"method": "log_prob"},
            "weights": {"which": "best", "averaged": False},
        }
        number |= more.pop("number", {})
        config = {
            "seed": seed,
            "model": {"_target_": f"zoo.models.{model}"},
            "dataset": {"name": "digits"},
            "runs": "x",
        }
        config |= more.pop("config", {})
        identity = json.dumps([model, {key: v for key, v in config.items() if key != "runs"}])
        results = {
            "status": "finished",
            "identity": identity,
            "name": f"{model.lower()}-digits",
            "version": "0.1.0",
        }
        results |= {
            "steps": 2000,
            "seconds": 61.2,
            "parameters": 123456,
            "config": config,
            "numbers": [number],
        } | more
        folder = self.path / (at or f"{model.lower()}-{len(list(self.path.iterdir()))}")
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(results))
        return folder

    def table(self, *arguments: str | Path) -> str:
        """The table of its runs, as printed with some arguments."""
        done = commands.run("scripts/compare", self.path, *arguments)
        assert done.code == 0, done.err
        return done.out

    def refusal(self, *arguments: str | Path) -> str:
        """The sentence with which a comparison is refused."""
        done = commands.run("scripts/compare", self.path, *arguments)
        assert done.code == 1
        assert done.out == ""
        assert done.err.count("\n") == 1
        return done.err


def pairs(folder: Folder) -> Folder:
    """Two mixers with two encodings, three seeds each; the seeds' luck is shared, and a little of their own."""
    for i, ((position, mixer), value) in enumerate(PAIRS.items()):
        for seed in range(3):
            config = {
                "mixer": {"_target_": f"zoo.nn.{mixer}"},
                "position": {"_target_": f"zoo.nn.{position}"},
            }
            folder.run("T", value + 0.3 * seed + 0.01 * i * seed**2, seed=seed, config=config)
    return folder


def line(text: str, start: str) -> str:
    """The one line of a table that begins so."""
    (found,) = [line for line in text.splitlines() if line.startswith(start)]
    return found
