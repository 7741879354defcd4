"""What all tests share: one torch thread, no network, caches in a folder of their own, the embedded digits."""

import os
import shutil
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


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    os.environ["ZOO_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data_dir():
    """The folder of real data. Tests that need a file of it skip with its name where it is absent."""
    return Path(os.environ.get("ZOO_DATA_DIR", ROOT / "data"))


def composed(config_name: str, *words: str):
    """The config that a command line of these words composes."""
    from hydra import compose, initialize_config_dir

    from zoo.config import resolvers

    resolvers.register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(config_name, overrides=list(words))


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a finished run: a small VAE on digits, 20 steps. Tests that change it take a copy."""
    import commands

    folder = tmp_path_factory.mktemp("finished")
    done = commands.train(
        folder,
        "trainer.max_steps=20",
        "trainer.val_check_interval=10",
        "checkpoint_every=10",
        "optimizer.lr=0.01",
    )
    assert done.code == 0, done.err
    return commands.only(folder)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, in runs of its own."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / finished.name))


@pytest.fixture
def folder(tmp_path):
    """A folder of runs to compare, empty: folder.run(...) writes one."""
    from comparisons import Folder

    return Folder(tmp_path)


@pytest.fixture
def grid(folder):
    """The same folder with runs of two mixers with two encodings, three seeds each."""
    from comparisons import pairs

    return pairs(folder)


@pytest.fixture
def table(folder):
    """table(*arguments): the comparison of the folder's runs, as printed."""
    return folder.table


@pytest.fixture
def refusal(folder):
    """refusal(*arguments): the sentence with which that comparison is refused."""
    return folder.refusal
