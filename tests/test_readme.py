"""The README's commands do what they say: each is run as written, with less to do."""

import re
import shlex

import pytest
from commands import TINY, only, run
from conftest import ROOT

LINES = re.findall(r"^uv run (\S+\.py)(.*)$", (ROOT / "README.md").read_text(), re.M)
LESS = {  # what makes a command short, as its own last words
    "train": (*TINY, "evaluate.examples=8", "trainer.limit_val_batches=1"),
    "evaluate": ("examples=8", "log_prob.samples=10"),
    "scripts/sample": ("n=4",),
    "scripts/list": ("model",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data_dir):
    return tmp_path_factory.mktemp("readme")


def test_the_readme_has_the_commands_that_are_tested_here():
    assert len(LINES) >= 9
    assert {name for name, _ in LINES} == {
        "train.py",
        "evaluate.py",
        "scripts/sample.py",
        "scripts/compare.py",
        "scripts/list.py",
    }


@pytest.mark.parametrize(
    ("name", "rest"), LINES, ids=[f"{name} {rest}".split("#")[0].strip() for name, rest in LINES]
)
def test_the_command_works(name, rest, folder, data_dir):
    words = shlex.split(rest, comments=True)
    name = name.removesuffix(".py")
    first = folder / "first"
    if not first.exists():  # the README's first command, whose run the later ones go on with
        done = run("train", *LESS["train"], f"runs={first}")
        assert done.code == 0, done.err
    runs = [word for word in words if "<one>" in word]
    words = [word.replace("runs/<one>", str(only(first))) for word in words]
    if text := next((w for w in words if w in ("dataset=tinyshakespeare", "dataset=binarized_mnist")), None):
        needed = {
            "dataset=tinyshakespeare": "tinyshakespeare/input.txt",
            "dataset=binarized_mnist": "binarized_mnist/binarized_mnist.npz",
        }[text]
        if not (data_dir / needed).exists():
            pytest.skip(f"{data_dir / needed} is not there")
        words += ["model.dim=8", "model.depth=1", f"data_dir={data_dir}", "batch_size=8"]
    if name == "scripts/compare":
        words = [str(first)]
    elif "--cfg" not in words and not any(w.startswith("resume=") for w in runs):
        words += LESS[name]
        if name == "train":
            words += [f"runs={folder / 'others'}"] + (["batch_size=8"] if text else [])
    done = run(name, *words)
    assert done.code == 0, done.err
