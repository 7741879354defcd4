"""The documentation is true: its links, names and commands resolve, and its examples run as they are printed."""

import importlib
import inspect
import json
import re
import shlex
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import commands
import pytest
from conftest import ROOT, composed

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
COMMANDS = {"train.py": "train", "evaluate.py": "evaluate", "scripts/sample.py": "sample"}
SHORT = (
    "trainer=cpu", "trainer.max_steps=5", "trainer.enable_progress_bar=false",
    "batch_size=32", "evaluate.n=2", "evaluate.splits=[val]",
)  # fmt: skip
TRANSFORMER = ("model=transformer", "model.dim=16", "model.depth=1")


class Block(NamedTuple):
    """A fenced block: its language, its text, and the file that its first line names, if any."""

    language: str
    text: str
    file: str | None
    more: bool  # it continues that file


def page(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path):
    """The fenced blocks of a page."""
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.M | re.S):
        first, _, rest = text.partition("\n")
        if named := re.fullmatch(r"# ([\w/]+\.(?:py|yaml))(, continued)?", first):
            yield Block(language, rest, named[1], bool(named[2]))
        else:
            yield Block(language, text, None, False)


def lines(path):
    """The command lines of a page's shell blocks, as words, the program first."""
    for block in blocks(path):
        if block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(re.sub(r"<[\w ]+>", "one", line), comments=True)
                for i, word in enumerate(words):
                    if word in COMMANDS or word.startswith("scripts/"):
                        yield words[i:]


COMMAND_LINES = [
    pytest.param(p, words, id=f"{page(p)}: {' '.join(words)}") for p in PAGES for words in lines(p)
]


def written(name, folder):
    """Write the files that a page's blocks name into a folder; those that were written."""
    found = {}
    for block in blocks(ROOT / "docs" / name):
        if block.file:
            assert block.more == (block.file in found), (
                f"{block.file} is begun twice, or continued before it begins"
            )
            found[block.file] = f"{found[block.file]}\n\n{block.text}" if block.more else block.text
    for file, text in found.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    return found


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """The folder ~/paper of the worked examples, importable."""
    folder = tmp_path_factory.mktemp("paper")
    for name in ("add_a_model.md", "add_a_dataset.md"):
        written(name, folder)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small VAE on digits, trained by the command."""
    folder = tmp_path_factory.mktemp("runs")
    done = commands.train(folder)
    assert done.code == 0, done.err
    return commands.only(folder)


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?://|mailto:|#)([^)\s#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{page(path)} links to {target}"


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_named_files_exist(path):
    text = path.read_text()
    for name in re.findall(r"(?<![\w/.~-])(?:configs|zoo|scripts|tests|docs)/[\w./-]*\w", text):
        assert (ROOT / name).exists(), f"{page(path)} names {name}"


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_dotted_names_exist(path):
    for name in set(re.findall(r"(?<![\w/.-])zoo(?:\.[A-Za-z_]\w*)+", path.read_text())):
        first, *rest = name.split(".")
        found = importlib.import_module(first)
        for i, part in enumerate(rest):
            try:
                found = getattr(found, part)
            except AttributeError:
                found = importlib.import_module(".".join([first, *rest[: i + 1]]))


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_python_compiles(path):
    for block in blocks(path):
        if block.language == "python":
            compile(textwrap.dedent(block.text), page(path), "exec")


@pytest.mark.parametrize(("path", "words"), COMMAND_LINES)
def test_command_lines_compose(path, words, paper):
    program, *words = words
    assert (ROOT / program).is_file()
    if program not in COMMANDS:  # argparse: its options stand in its source
        source = (ROOT / program).read_text()
        assert all(f'"{word.split("=")[0]}"' in source for word in words if word.startswith("--"))
        return
    overrides = []
    words = iter(words)
    for word in words:
        if word == "--config-dir":
            folder = next(words).replace("~/paper", str(paper))
            overrides.append(f"hydra.searchpath=[file://{folder}]")
        elif word in ("--cfg", "--package", "-p"):
            next(words)
        elif not word.startswith("-"):
            key, _, value = word.partition("=")
            if "," in value and value[0] not in "[{":
                value = value.split(",")[0]  # a sweep: any one of its jobs
            overrides.append(f"++{key}={value}" if is_option(key) else f"{key}={value}")
    composed(COMMANDS[program], *overrides)


def is_option(key):
    """Whether a key is an option of a model's method; one that no model has is a mistake of the page."""
    import zoo.models

    owner, _, option = key.rpartition(".")
    method = owner.rpartition(".")[2]
    if method not in ("log_prob", "sample"):
        return False
    models = [getattr(zoo.models, name) for name in zoo.models.__all__]
    known = {
        name
        for model in models
        if callable(getattr(model, method, None))  # a model of parts has those of its parts
        for name in inspect.signature(getattr(model, method)).parameters
    }
    assert option in known, f"no model's {method} has an option {option}"
    return True


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["model=mine", "gradient_checkpointing=full"], {"nats", "bits_per_dim", "components_used"}),
        ([*TRANSFORMER, "mixer=shift"], {"nats", "bits_per_dim", "accuracy"}),
        ([*TRANSFORMER, "position=fade"], {"nats", "bits_per_dim", "accuracy"}),
        ([*TRANSFORMER, "dataset=echo"], {"nats", "bits_per_dim", "accuracy"}),
        (["model=mine", "dataset=echo"], {"nats", "bits_per_dim", "components_used"}),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_the_worked_examples_train(paper, tmp_path, words, numbers):
    done = commands.run("train", "--config-dir", str(paper / "mine"), *words, *SHORT, f"runs={tmp_path}")
    assert done.code == 0, done.err
    folder = commands.only(tmp_path)
    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "finished"
    assert {number["name"] for number in results["numbers"]} == numbers
    assert len(list((folder / "samples").iterdir())) == 1


def test_the_worked_examples_own_test_passes(paper):
    tests = importlib.import_module("test_paperx")
    tests.test_probabilities_sum_to_one()


def test_the_worked_mixer_and_encoding_go_on_as_they_see_all_at_once(paper):
    import torch
    from paperx import Fade, Shift

    from zoo.nn import Attention, Backbone

    for mixer, position in ((Shift, None), (Attention, Fade)):
        torch.manual_seed(0)
        backbone = Backbone(16, 2, mixer, position=position).double().eval()
        x = torch.randn(2, 5, 16, dtype=torch.float64)
        _, state = backbone.prefill(x[:, :3])
        steps = []
        for t in (3, 4):
            y, state = backbone.step(x[:, t], state)
            steps.append(y)
        torch.testing.assert_close(torch.stack(steps, 1), backbone(x)[:, 3:])


def test_the_worked_dataset_says_everything_twice(paper):
    import torch
    from echo import Echo

    x = Echo("val")[torch.arange(50)]["x"]
    for row in x:
        word = row[row != -1]
        assert torch.equal(word[: len(word) // 2], word[len(word) // 2 :])


@pytest.mark.parametrize("name", ["notebook.md", "run_directory.md"])
def test_code_for_notebooks_runs(name, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").symlink_to(run.parent)
    code = "\n".join(b.text for b in blocks(ROOT / "docs" / name) if b.language == "python")
    exec(compile(code.replace("runs/<one>", f"runs/{run.name}"), name, "exec"), {})


def test_the_run_directory_is_told_whole(run):
    import torch

    told = set(
        re.findall(
            r"[\w.-]+", " ".join(re.findall(r"`([^`\n]+)`", (ROOT / "docs/run_directory.md").read_text()))
        )
    )
    results = json.loads((run / "results.json").read_text())
    assert set(results) <= told
    assert {key for number in results["numbers"] for key in number} <= told
    assert set(results["numbers"][0]["weights"]) <= told
    assert {path.name for path in run.iterdir() if path.is_file()} <= told
    assert set(torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)) <= told
