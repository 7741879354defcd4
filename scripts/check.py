"""Prove a part of your own, or one of ours: uv run scripts/check.py model=mine --config-dir ~/mine

Also mixer=..., position=..., with a model that takes it; dataset=... and all other keys as in train.py. A line for each
property: ok, fails, or does not apply, and why. The status is 0 where none fails, 2 where one does, 1 for an error.
"""

import re
import sys

from zoo.config import command
from zoo.config.catalogue import bringing

MARKS = {"ok": "ok    ", "fails": "FAILS ", "does not apply": "–     "}
USUAL = "model=transformer"  # of the models that a mixer or a position can be had with


def completed(words: list[str]) -> list[str]:
    """The command line, with a model that brings the part that is named, where no model is."""
    groups = [match[1] for word in words if (match := re.match(r"([\w/]+)=", word))]
    if "model" in groups or "experiment" in groups:
        return words
    for group in groups:
        if brings := [word for word in bringing(group) if word.startswith("model=")]:
            return [*words, USUAL if USUAL in brings else brings[0]]
    return words


@command("train")
def run(config):
    import torch

    from zoo.jobs import compose
    from zoo.jobs.check import check

    torch.set_num_threads(config.threads or torch.get_num_threads())
    failed = 0
    for what, found in check(compose.plain(config)):
        print(f"{MARKS[found.verdict]}{what:44}{found.words}", flush=True)
        failed += found.verdict == "fails"
    if failed:
        raise SystemExit(2)


def main() -> None:
    """Complete the command line and run it."""
    sys.argv[1:] = completed(sys.argv[1:])
    run()


if __name__ == "__main__":
    main()
