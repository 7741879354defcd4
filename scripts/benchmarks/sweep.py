"""Sweeps: imports paid once, what is finished confirmed at once, little lost between two jobs."""

import contextlib
import io
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, Row, command

TINY = (
    *("trainer=cpu", "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.limit_val_batches=1"),
    *("trainer.enable_progress_bar=false", "batch_size=8", "evaluate.n=0", "evaluate.splits=[]"),
    *("model=vae", "model.latent=2", "encoder.hidden=[8]", "decoder.hidden=[8]"),
)
RUNS, SINGLE, GRID = 20, 3, 200
AT_ONCE = 4.0
CONFIRMED = 20.0  # seconds, for a grid of 200
BETWEEN = 0.05  # seconds


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        train = [str(ROOT / "train.py"), *TINY]
        command([*train, f"runs={folder}/warm"])
        alone = [command([*train, f"runs={folder}/alone", f"seed={seed}"])[1] for seed in range(SINGLE)]
        for launcher in ("here", "pool"):
            words = ["-m", f"runs={folder}/{launcher}", f"seed=range({RUNS})", f"hydra/launcher={launcher}"]
            _, wall, _ = command([*train, *words])
            yield Row(
                f"{RUNS} tiny runs, hydra/launcher={launcher}",
                f"{wall:.1f} s",
                f"{RUNS * statistics.median(alone):.0f} s",
                [RUNS * statistics.median(alone) / wall],
                least=AT_ONCE if launcher == "pool" else None,
                note=f"{RUNS} processes, one after the other, from {SINGLE} of them; wall time",
            )
        yield between(Path(folder, "between"))
        yield confirmed(folder, train)


def between(folder: Path) -> Row:
    """CPU time of a job that does nothing, in a sweep of one process, beyond that of composing its config."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from zoo.config import command as program
    from zoo.config import resolvers
    from zoo.runs import Run

    began: list[float] = []

    @program("train")
    def main(config: Any) -> Run:
        began.append(time.process_time())
        return Run(folder / "none")

    sys.argv = ["train.py", "-m", *TINY, f"runs={folder}", f"seed=range({RUNS})"]
    with contextlib.redirect_stdout(io.StringIO()):
        main()
    GlobalHydra.instance().clear()
    resolvers.register()
    composed = []
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        for _ in began:
            before = time.process_time()
            compose("train", overrides=list(TINY), return_hydra_config=True)
            composed.append(time.process_time() - before)
    own = [b - a - statistics.median(composed) for a, b in itertools.pairwise(began)]
    return Row(
        "from one job to the next in one process, beyond composition",
        f"{statistics.median(own) * 1e3:.1f} ms",
        f"{BETWEEN * 1e3:.0f} ms",
        [max(0.0, seconds) / BETWEEN for seconds in own],
        most=1.0,
        note=f"CPU time; composition itself: {statistics.median(composed) * 1e3:.0f} ms",
    )


def confirmed(folder: str, train: list[str]) -> Row:
    """A grid of 200 jobs that are finished: a few were trained, and are copied under the identities of the others."""
    words = ["-m", f"runs={folder}/grid", f"seed=range({GRID})"]
    copied(Path(folder, "here"), Path(folder, "grid"))
    cpu, wall, _ = command([*train, *words])
    return Row(
        f"a finished sweep of {GRID} jobs, confirmed",
        f"{wall:.1f} s",
        f"{CONFIRMED:.0f} s",
        [wall / CONFIRMED],
        most=1.0,
        note=f"{cpu:.1f} s of CPU",
    )


def copied(source: Path, target: Path) -> None:
    """Finished runs of all seeds: one that was trained, with the identity and the config of each."""
    from zoo.jobs import known
    from zoo.runs import identity, runs

    results = next(runs(source)).results
    data = results["data"]
    for seed in range(GRID):
        config = results["config"] | {"seed": seed, "runs": str(target)}
        whole = identity(config, data)
        run = known.placed(str(target), "vae-digits", whole)
        run.create(config, whole, {})
        run.write_results(results | {"config": config, "identity": whole})
