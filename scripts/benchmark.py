"""What the library costs, as ratios to plain code and to peers: uv run --group bench scripts/benchmark.py [section ...]

Ratios are of CPU time, measured side by side, and hold on other machines roughly; absolute times do not.
A target that is missed is told, and is no failure: the exit status is 1 only where something could not run.
"""

import argparse
import importlib
import json
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.measure import Row, machine, table

SECTIONS = {
    "help": "the command line, before any work",
    "loop": "the training loop around a model's step",
    "feed": "batches from memory",
    "vae": "a VAE's step and its training",
    "transformer": "a Transformer's step",
    "generation": "a Transformer's tokens, one by one",
    "sequence": "layers for sequences: peers, growth with length, tokens one by one, use of a GPU",
    "codes": "codes, and images pixel by pixel",
    "flows": "flows: peers, samples, and activations by inverting",
    "diffusion": "networks of diffusion: U-Nets and a DiT beside peers",
    "sweep": "sweeps: many runs of one command",
    "start": "train.py, from nothing to samples",
}


def measured(name: str) -> list[Row]:
    """A section's rows; in a process of its own, for what was measured before changes the memory's state."""
    return list(importlib.import_module(f"benchmarks.{name}").rows())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure sections and print the table; 1 if one of them failed to run."""
    sections = "; ".join(f"{name}: {what}" for name, what in SECTIONS.items())
    parser = argparse.ArgumentParser(prog="benchmark.py", description="Speed, as ratios.", epilog=sections)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"{', '.join(SECTIONS)}; default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the rows go too, with the machine")
    told = parser.parse_args(arguments)
    if unknown := set(told.sections) - set(SECTIONS):
        parser.error(f"{sorted(unknown)[0]} is no section; there are {', '.join(SECTIONS)}")
    rows: list[Row] = []
    failed = False
    for name in told.sections or SECTIONS:
        print(f"{name}: {SECTIONS[name]} ...", file=sys.stderr, flush=True)
        try:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                rows += fresh.submit(measured, name).result()
        except Exception as error:
            traceback.print_exc()
            rows.append(Row(name, note=f"failed: {type(error).__name__}: {error}"))
            failed = True
    facts = machine()
    print(" | ".join(f"{key} {value}" for key, value in facts.items()), end="\n\n")
    print(table(rows))
    if told.json:
        told.json.write_text(json.dumps({"machine": facts, "rows": [row.plain() for row in rows]}, indent=1))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
