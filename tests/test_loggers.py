"""Loggers give what they were given: read back from W&B's offline files and TensorBoard's event files."""

import json
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import wandb
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from zoo.training.loggers import TensorBoard, WandB

IDENTITY = "0123456789abcdef" * 4
LOGGERS = Path(__file__).parents[1] / "configs" / "logger"


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No account, no network, and nothing outside the test's folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    for name in ("WANDB_PROJECT", "WANDB_ENTITY", "WANDB_RUN_ID", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)


def make(logger: type, folder: Path, identity: str = IDENTITY, **options: Any) -> Any:
    return logger(
        folder=folder, identity=identity, name="vae-digits", config={"seed": 3, "model": {"z": 8}}, **options
    )


def records(folder: Path) -> list[dict]:
    """All that W&B wrote for a run, by its own reader; `folder` is one offline-run-*."""
    inspect = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def offline_runs(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*"))


def compose(tmp_path: Path, *overrides: str) -> dict:
    (tmp_path / "train.yaml").write_text("defaults:\n  - logger: []\n  - _self_\nseed: 0\n")
    (tmp_path / "logger").symlink_to(LOGGERS)
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        return hydra.compose("train", list(overrides))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ([], []),
        (["logger=wandb"], ["wandb"]),
        (["logger=[wandb]"], ["wandb"]),
        (["logger=[wandb,tensorboard]", "logger.wandb.tags=[a]"], ["tensorboard", "wandb"]),
    ],
)
def test_loggers_are_chosen_by_name(tmp_path, override, expected):
    config = compose(tmp_path, *override)
    assert sorted(config.get("logger") or {}) == expected


def test_a_composed_logger_is_built_with_the_run(tmp_path):
    config = compose(tmp_path, "logger=[wandb,tensorboard]", "logger.wandb.project=mine")
    built = {
        key: make(hydra.utils.instantiate(node), tmp_path / "run") for key, node in config.logger.items()
    }
    assert isinstance(built["wandb"], WandB)
    assert isinstance(built["tensorboard"], TensorBoard)
    assert built["wandb"].name == "mine"
    assert built["wandb"].version == IDENTITY[:32]


def test_wandb_keeps_metrics_config_group_and_identity(tmp_path):
    logger = make(WandB, tmp_path, group="positions", tags=["digits"])
    logger.log_metrics({"train/loss": 2.5}, step=1)
    logger.log_metrics({"train/loss": 1.5}, step=2)
    logger.samples(2, torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8))
    logger.samples(2, ["to be", "or not"])
    logger.finish()
    (folder,) = offline_runs(tmp_path)
    found = records(folder)
    run = next(r["run"] for r in found if r["type"] == "run")
    assert run["run_id"] == IDENTITY[:32]
    assert run["project"] == "zoo"
    assert run["display_name"] == "vae-digits"
    assert run["run_group"] == "positions"
    assert run["job_type"] == "train"
    assert run["tags"] == ["digits"]
    assert run["config"]["update"]["seed"] == 3
    assert run["config"]["update"]["model"] == {"z": 8}
    history = [r["history"]["item"] for r in found if r["type"] == "history"]
    assert [(h["trainer/global_step"], h["train/loss"]) for h in history[:2]] == [(1, 2.5), (2, 1.5)]
    assert len(list(folder.glob("files/media/images/samples*.png"))) == 1
    (table,) = folder.glob("files/media/table/samples*.json")
    assert json.loads(table.read_text())["data"] == [[0, "to be"], [1, "or not"]]


def test_two_runs_of_one_process_are_two(tmp_path):
    for identity in ("a" * 64, "b" * 64):
        logger = make(WandB, tmp_path, identity)
        logger.log_metrics({"train/loss": 1.0}, step=1)
        logger.finish()
    assert [folder.name.rpartition("-")[2] for folder in offline_runs(tmp_path)] == ["a" * 32, "b" * 32]


def test_a_resumed_run_keeps_its_id_and_an_evaluation_has_its_own(tmp_path):
    ids = []
    for job_type in ("train", "train", "eval"):
        logger = make(WandB, tmp_path, job_type=job_type)
        ids.append(logger.experiment.id)
        logger.finish()
    assert ids == [IDENTITY[:32], IDENTITY[:32], f"{IDENTITY[:32]}-eval"]


class Line(LightningModule):
    """The least that a trainer can fit."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        loss = (self.weight * batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.25)


def test_a_trainer_logs_to_both(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = [make(WandB, tmp_path), make(TensorBoard, tmp_path)]
    trainer = Trainer(
        max_steps=2,
        logger=loggers,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(Line(), DataLoader(torch.ones(2), batch_size=1))
    for logger in loggers:
        logger.finish()
    history = [r["history"]["item"] for r in records(*offline_runs(tmp_path)) if r["type"] == "history"]
    assert [h["train/loss"] for h in history] == [1.0, 0.25]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [s.value for s in events.Scalars("train/loss")] == [1.0, 0.25]


def test_a_failed_run_is_told_as_failed(tmp_path):
    logger = make(WandB, tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.finish(failed=True)
    (end,) = [r["exit"] for r in records(*offline_runs(tmp_path)) if r["type"] == "exit"]
    assert end["exit_code"] == 1


@pytest.mark.parametrize("by", ["environment", "option"])
def test_wandb_can_be_disabled(tmp_path, monkeypatch, by):
    wandb.teardown()  # it reads its environment once per process
    if by == "environment":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = make(WandB, tmp_path, mode="disabled" if by == "option" else None)
    logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.samples(1, ["to be"])
    logger.finish()
    wandb.teardown()
    assert offline_runs(tmp_path) == []


def test_tensorboard_keeps_metrics_samples_and_config(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (1, 2):  # the second is a resumed run, which adds to the first
        logger = make(TensorBoard, tmp_path)
        logger.log_metrics({"train/loss": 2.0 / step}, step=step)
        logger.samples(step, torch.zeros(5, 3, 8, 8, dtype=torch.uint8))
        logger.samples(step, ["to be"])
        logger.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(s.step, s.value) for s in events.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]
    assert [(i.step, i.width, i.height) for i in events.Images("samples")] == [(1, 32, 22), (2, 32, 22)]
    texts = events.Tags()["tensors"]
    assert "samples/text_summary" in texts
    assert "train/text_summary" in texts
    about = events.Tensors("train/text_summary")[0].tensor_proto.string_val[0].decode()
    assert IDENTITY in about
    assert "seed: 3" in about


@pytest.mark.parametrize(("logger", "package"), [(WandB, "wandb"), (TensorBoard, "tensorboard")])
def test_a_missing_package_is_named_with_its_cure(tmp_path, monkeypatch, logger, package):
    monkeypatch.setattr(
        "zoo.training.loggers.find_spec", lambda name: None if name == package else util.find_spec(name)
    )
    with pytest.raises(ModuleNotFoundError, match=f"logger={package} needs the package {package}.*try: uv"):
        make(logger, tmp_path)


@pytest.mark.parametrize("logger", [WandB, TensorBoard])
def test_samples_that_are_no_images_are_refused(tmp_path, logger):
    logger = make(logger, tmp_path)
    with pytest.raises(ValueError, match="cannot be shown as images"):
        logger.samples(1, torch.zeros(2, 5, 8, 8))
    logger.finish()
