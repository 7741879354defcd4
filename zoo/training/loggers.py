"""Where else a run can be watched: Weights & Biases, TensorBoard. The run's folder has all of it too.

A logger is built by `logger(folder=, identity=, name=, config=, group=, job_type=)`. It has the methods of a
Lightning logger, `samples(step, samples)`, and `finish()`, which whoever built it calls in a `finally`.
"""

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor


class WandB(WandbLogger):
    """A run at Weights & Biases: the same identity goes on with the same W&B run, also on another machine.

    folder    the run's directory, under which W&B keeps its `wandb/`
    identity  the run's hash; its first 32 digits are the W&B id, followed by a job type other than "train"
    name      how the run is called there
    config    plain dict, shown and searchable there
    group     runs that belong together, such as a sweep
    job_type  "train" or "eval"
    project, entity, tags   where it stands and how it is found
    mode      "online", "offline", "disabled", or None: as W&B's own environment variables say (WANDB_MODE)

    Metrics stand over `trainer/global_step`. Checkpoints are never uploaded.
    Raises ModuleNotFoundError without the package `wandb`.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        *,
        name: str,
        config: Mapping[str, Any],
        group: str | None = None,
        job_type: str = "train",
        project: str = "zoo",
        entity: str | None = None,
        tags: Sequence[str] = (),
        mode: str | None = None,
    ) -> None:
        _need("wandb", "logger=wandb", "uv add wandb")
        super().__init__(
            name=name,
            save_dir=folder,
            # an evaluation must not overwrite the job type, the config and the summary of the training
            id=identity[:32] if job_type == "train" else f"{identity[:32]}-{job_type}",
            project=project,
            log_model=False,
            resume="allow",
            config=dict(config),
            group=group,
            job_type=job_type,
            entity=entity,
            tags=list(tags),
            mode=mode,
        )
        del self._wandb_init["anonymous"]  # Lightning passes what W&B does no longer know, and warns of

    @rank_zero_only
    def samples(self, step: int, samples: Tensor | Sequence[str]) -> None:
        """Show samples of this step: images (n, C, H, W) in uint8 as one grid, or texts as a table."""
        if isinstance(samples, Tensor):
            from PIL import Image

            self.log_image("samples", [Image.fromarray(_grid(samples))], step=step)
        else:
            self.log_text("samples", columns=["number", "text"], data=_numbered(samples), step=step)

    @rank_zero_only
    def finish(self, failed: bool = False) -> None:
        """End the W&B run; without it the next job of this process would write into the same one."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(failed))
            self._experiment = None


class TensorBoard(TensorBoardLogger):
    """Event files for TensorBoard in the run's folder, under `tensorboard/`; a resumed run adds to them.

    folder, identity, name, config, group and job_type as in WandB; all but the folder become one text,
    named after the job type. Raises ModuleNotFoundError without the package `tensorboard`.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        *,
        name: str,
        config: Mapping[str, Any],
        group: str | None = None,
        job_type: str = "train",
    ) -> None:
        _need("tensorboard", "logger=tensorboard", "uv sync --extra tensorboard")
        super().__init__(save_dir=folder, name="tensorboard", version="")
        self.about = {"name": name, "identity": identity, "group": group, "config": dict(config)}
        self.job_type = job_type

    @property
    def experiment(self) -> Any:
        """The SummaryWriter; what the run is about is the first thing written."""
        fresh = self._experiment is None
        writer = super().experiment
        if fresh and rank_zero_only.rank == 0:
            import yaml

            text = yaml.safe_dump(self.about, sort_keys=False).replace("\n", "\n    ")
            writer.add_text(self.job_type, f"    {text}")  # four spaces are a code block there
        return writer

    @rank_zero_only
    def samples(self, step: int, samples: Tensor | Sequence[str]) -> None:
        """Show samples of this step: images (n, C, H, W) in uint8 as one grid, or texts as a table."""
        if isinstance(samples, Tensor):
            self.experiment.add_image("samples", _grid(samples), step, dataformats="HWC")
        else:
            rows = "\n".join(f"| {i} | `{text!r}` |" for i, text in _numbered(samples))
            self.experiment.add_text("samples", f"| number | text |\n|---|---|\n{rows}", step)

    @rank_zero_only
    def finish(self, failed: bool = False) -> None:
        """Write what is buffered and close the file; TensorBoard has no place for `failed`."""
        if self._experiment is not None:
            self._experiment.close()
            self._experiment = None


def _need(package: str, option: str, cure: str) -> None:
    if find_spec(package) is None:
        raise ModuleNotFoundError(
            f"{option} needs the package {package}, which is not installed; try: {cure}"
        )


def _numbered(texts: Sequence[str]) -> list[list[Any]]:
    return [[i, text] for i, text in enumerate(texts)]


def _grid(images: Tensor) -> np.ndarray:
    """Images (n, C, H, W) of uint8 -> one image (H', W', 3), about as wide as high."""
    from torchvision.utils import make_grid

    if images.dim() != 4 or images.shape[1] not in (1, 3) or images.element_size() != 1:
        raise ValueError(
            f"samples of shape {tuple(images.shape)} and type {images.dtype} cannot be shown as images; "
            "give uint8 (n, 1 or 3, H, W), or texts"
        )
    return make_grid(images.cpu(), nrow=math.ceil(math.sqrt(len(images)))).permute(1, 2, 0).numpy()
