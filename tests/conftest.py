"""What all tests share: one torch thread, no network, caches in a folder of their own, the embedded digits."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes on two cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir():
    """The folder of real data. Tests that need a file of it skip with its name where it is absent."""
    return Path(os.environ.get("ZOO_DATA_DIR", ROOT / "data"))
