"""`train.py --help` and `--cfg job` against the smallest Hydra program, as whole processes."""

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import ROOT, Row, command, over

BARE = """
import hydra

@hydra.main(version_base="1.3", config_path=".", config_name="bare")
def main(config):
    pass

main()
"""
PAIRS = 8


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        (Path(folder) / "bare.yaml").write_text("a: 1\n")
        for words in (["--help"], ["--cfg", "job"]):
            programs = {"ours": [str(ROOT / "train.py"), *words], "bare": [str(bare), *words]}
            spent: dict[str, list[float]] = {name: [] for name in programs}
            for pair in range(-1, PAIRS):  # the first fills caches
                for name in sorted(programs, reverse=pair % 2 == 0):
                    seconds = command(programs[name])[0]
                    if pair >= 0:
                        spent[name].append(seconds)
            yield Row(
                f"train.py {' '.join(words)}",
                f"{statistics.median(spent['ours']):.2f} s",
                f"{statistics.median(spent['bare']):.2f} s",
                over(spent["ours"], spent["bare"]),
                most=1.5,
                note="a bare Hydra program; CPU time of the process",
            )
