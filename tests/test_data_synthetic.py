"""Tasks made by a rule: each solved again by a slow reader of its examples, and scored only where it asks."""

import hashlib
from functools import partial
from statistics import median

import numpy as np
import pytest
import torch
from conftest import composed
from omegaconf import OmegaConf

from zoo.data import (
    MNIST,
    MQAR,
    Arrays,
    AssociativeRecall,
    Induction,
    InductionHeads,
    ListOps,
    Reversal,
    SelectiveCopying,
    SequentialCIFAR10,
    SequentialMNIST,
    Sorting,
    listops,
    sequential,
)
from zoo.data.listops import TOKENS, drawn
from zoo.data.synthetic import Chance
from zoo.jobs.data import loaders
from zoo.types import PAD

SPLITS = ("train", "val", "test")
SIZES = {"train": 400, "val": 60, "test": 50}
TASKS = {
    "selective_copying": partial(SelectiveCopying, sizes=SIZES, length=40, copied=5, levels=7),
    "induction_heads": partial(InductionHeads, sizes=SIZES, length=24, levels=9),
    "associative_recall": partial(AssociativeRecall, sizes=SIZES),
    "induction": partial(Induction, sizes=SIZES),
    "mqar": partial(MQAR, sizes=SIZES, length=32, pairs=6, levels=64),
    "mqar, filled": partial(MQAR, sizes=SIZES, length=32, pairs=8, levels=18, power=1.0, filler=True),
    "listops": partial(ListOps, sizes=SIZES, length=120, longer=30, arguments=5, depth=6),
    "sorting": partial(Sorting, sizes=SIZES, length=12, shortest=1, levels=6),
    "reversal": partial(Reversal, sizes=SIZES, length=12, shortest=1, levels=6),
}
HASHES = {
    "selective_copying": "b80149bbb7ccf39d",
    "induction_heads": "228f5c22656a9be1",
    "associative_recall": "8693f719e73fcbfa",
    "induction": "9ffb3847ed90b915",
    "mqar": "0e40bb6141f6179d",
    "mqar, filled": "c8aa4a8d3e4fef61",
    "listops": "a96533d5a59f4fb9",
    "sorting": "979f07cd7d86fc9b",
    "reversal": "fe9c448b09a1dd4d",
}


def everything(data) -> tuple[torch.Tensor, torch.Tensor]:
    batch = data[torch.arange(len(data))]
    return batch["x"], batch["y"]


# One rule after the other: the targets of one example, from its tokens alone


def selective_copying(x: list[int], last_only: bool) -> list[int]:
    assert x[-5:] == [6] * 5
    strewn = [token for token in x[:-5] if token != 0]
    assert len(strewn) == 5
    assert 6 not in strewn
    return [PAD] * (len(x) - 5) + strewn


def after_the_first(x: list[int], special: int) -> list[int]:
    assert x.count(special) == 2
    assert x[-1] == special
    assert x.index(special) + 1 < len(x) - 1
    return [PAD] * (len(x) - 1) + [x[x.index(special) + 1]]


def induction_heads(x: list[int], last_only: bool) -> list[int]:
    return after_the_first(x, 8)


def induction(x: list[int], last_only: bool) -> list[int]:
    told = after_the_first(x, 18)
    assert 19 not in x
    return told if last_only else x[1:] + told[-1:]


def associative_recall(x: list[int], last_only: bool) -> list[int]:
    *pairs, arrow, asked = x
    assert arrow == 8
    found: dict[int, set[int]] = {}
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        assert 0 <= key < 4 <= value < 8
        found.setdefault(key, set()).add(value)
    assert all(len(values) == 1 for values in found.values())
    (answer,) = found[asked]
    return [PAD] * (len(x) - 1) + [answer] if last_only else [*x[1:], answer]


def mqar(x: list[int], pairs: int, levels: int, filled: bool) -> list[int]:
    table = dict(zip(x[0 : 2 * pairs : 2], x[1 : 2 * pairs : 2], strict=True))
    assert len(table) == len(set(table.values())) == pairs
    assert all(1 <= key < levels // 2 <= value < levels for key, value in table.items())
    told = [PAD] * len(x)
    for t in range(2 * pairs, len(x), 2):
        if x[t] in table:
            told[t] = table[x[t]]
    if not filled:
        assert all(token == 0 for token, target in zip(x[2 * pairs :], told[2 * pairs :]) if target == PAD)
    return told


RULES = {
    "selective_copying": selective_copying,
    "induction_heads": induction_heads,
    "induction": induction,
    "associative_recall": associative_recall,
    "mqar": lambda x, last_only: mqar(x, 6, 64, False),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("split", SPLITS)
def test_a_slow_reader_finds_every_target_and_no_other(name, split):
    data = TASKS[name](split)
    x, y = everything(data)
    assert len(data) == SIZES[split]
    assert x.dtype == y.dtype == torch.int64
    for tokens, targets in zip(x.tolist(), y.tolist(), strict=True):
        assert RULES[name](tokens, split != "train") == targets


def test_filler_changes_no_question():
    x, y = everything(TASKS["mqar, filled"]("train"))
    assert ((y != PAD).sum(1) == 8).all()
    for tokens, targets in zip(x.tolist(), y.tolist(), strict=True):
        table = mqar(tokens, 8, 18, True)
        asked = [t for t, target in enumerate(targets) if target != PAD]
        assert all(t >= 16 and t % 2 == 0 and table[t] == targets[t] for t in asked)
        assert sorted(tokens[t] for t in asked) == list(range(1, 9))
    filler = x[:, 16:][y[:, 16:] == PAD]
    assert filler.unique().tolist() == list(range(18))


def test_sorting_and_reversal_undo_what_was_given():
    for name, rule in (("sorting", sorted), ("reversal", lambda given: given[::-1])):
        x, y = everything(TASKS[name]("train"))
        for told, given in zip(x.tolist(), y.tolist(), strict=True):
            length = 12 - given.count(PAD)
            assert told == [*rule(given[:length]), *[PAD] * (12 - length)]
            assert PAD not in given[:length]
        lengths = (x != PAD).sum(1)
        assert (int(lengths.min()), int(lengths.max())) == (1, 12)
        assert y.unique().tolist() == list(range(-1, 6))


def value(text: str) -> tuple[int, int]:
    """What a written list comes to, and how deep it is, by Python's own functions."""
    rules = {"MIN": min, "MAX": max, "MED": lambda v: int(median(v)), "SM": lambda v: sum(v) % 10}
    stack: list[list] = [[]]
    deepest = 0
    for word in text.split():
        if word.startswith("["):
            stack.append([word[1:]])
            deepest = max(deepest, len(stack) - 1)
        elif word == "]":
            name, *numbers = stack.pop()
            assert 2 <= len(numbers) <= 5
            stack[-1].append(rules[name](numbers))
        else:
            stack[-1].append(int(word))
    ((number,),) = stack
    return number, deepest


@pytest.mark.parametrize("split", SPLITS)
def test_lists_come_to_what_python_says(split):
    data = TASKS["listops"](split)
    x, y = everything(data)
    found = [value(data.decode(tokens)) for tokens in x]
    assert [number for number, _ in found] == y.tolist()
    assert max(deep for _, deep in found) == 5  # digits are the sixth
    lengths = (x != PAD).sum(1)
    assert 30 < int(lengths.min()) <= int(lengths.max()) <= 120
    assert all((tokens[:n] != PAD).all() for tokens, n in zip(x, lengths))
    assert x.max() < len(TOKENS) == 15


def test_lists_follow_the_published_grammar():
    data = ListOps("train", sizes={"train": 4000}, length=26, longer=3, arguments=4, depth=3)
    digits, lists, sizes, operators = 0, 0, [], []
    for tokens in data[torch.arange(4000)]["x"]:
        deep, elements = 0, 0
        for token in data.decode(tokens).split():
            elements += deep == 1 and token != "]"
            digits += deep == 1 and token.isdigit()
            lists += deep == 1 and token.startswith("[")
            deep += token.startswith("[") - (token == "]")
            operators += [token] if token.startswith("[") else []
        sizes.append(elements)
    # of 4 ("[SM 1 2 ]") to 26 tokens are all trees of this depth: none was left out for its length
    assert lists / (lists + digits) == pytest.approx(0.25, abs=0.02)
    assert np.bincount(sizes)[2:] / 4000 == pytest.approx([1 / 3] * 3, abs=0.03)
    assert [operators.count(o) / len(operators) for o in TOKENS[10:14]] == pytest.approx([0.25] * 4, abs=0.03)


def test_gaps_follow_the_power_law_without_repetition():
    data = MQAR("train", sizes={"train": 20000}, length=16, pairs=2, levels=32, power=0.2)
    x, y = everything(data)
    p = np.arange(1.0, 7.0) ** (0.2 - 1)
    p /= p.sum()
    second = p @ (p / (1 - p)[:, None] * (1 - np.eye(6)))  # the first is gone, the others share what is left
    for key, expected in ((0, p), (2, second)):
        places = (x[:, 4::2] == x[:, key : key + 1]).double().argmax(1)
        assert torch.bincount(places, minlength=6) / 20000 == pytest.approx(expected, abs=0.015)
    assert ((y != PAD).sum(1) == 2).all()


def test_draws_are_even_and_without_repetition():
    rows = Chance("test", "train").distinct(30000, 3, 5)
    assert all(len(set(row)) == 3 for row in rows[:500].tolist())
    codes = rows @ [25, 5, 1]
    assert len(np.unique(codes)) == 60
    assert np.unique(codes, return_counts=True)[1] / 30000 == pytest.approx([1 / 60] * 60, abs=0.004)
    assert np.bincount(Chance("test", "val").below(7, 70000)) / 70000 == pytest.approx([1 / 7] * 7, abs=0.006)
    with pytest.raises(ValueError, match="split='dev'"):
        Chance("test", "dev")


@pytest.mark.parametrize("name", TASKS)
def test_examples_are_equal_on_every_machine(name):
    found = ""
    for split in SPLITS:
        data = TASKS[name](split)
        assert torch.equal(everything(data)[0], everything(TASKS[name](split))[0])
        for part in everything(data):
            found = hashlib.sha256(found.encode() + part.numpy().tobytes()).hexdigest()[:16]
    assert found == HASHES[name]


def test_lists_are_drawn_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path))
    make, draws = TASKS["listops"], []
    monkeypatch.setattr(listops, "drawn", lambda *a, **k: draws.append(a) or drawn(*a, **k))
    first = everything(make("val"))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damage in (None, whole[:200], b"", None):
        if damage is not None:
            path.write_bytes(damage)
        found = everything(make("val"))
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True))
        assert path.read_bytes() == whole
    assert len(draws) == 3  # at first, and for each damage
    for other in (make("test"), make("val", depth=5), make("val", sizes={"val": 61})):
        assert not torch.equal(everything(other)[1][:50], first[1][:50]) or len(other) == 61
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.setenv("ZOO_CACHE_DIR", "/dev/null/nowhere")
    assert torch.equal(everything(make("val"))[0], first[0])


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"sorting", "reversal"}))
def test_no_example_is_in_two_splits(name):
    rows = [tuple(row) for split in SPLITS for row in everything(TASKS[name](split))[0].tolist()]
    assert len(set(rows)) == len(rows) == sum(SIZES.values())


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (partial(SelectiveCopying, length=8, copied=5), "length is at least twice copied"),
        (partial(SelectiveCopying, levels=3), "four levels at least"),
        (partial(InductionHeads, length=2), "three tokens at least"),
        (partial(AssociativeRecall, length=21), "even number of tokens"),
        (partial(AssociativeRecall, levels=5), "six levels at least"),
        (partial(Induction, levels=3), "four levels at least"),
        (partial(MQAR, length=64, pairs=17), "pairs <= length / 4"),
        (partial(MQAR, pairs=4, levels=8), "need levels=10 at least"),
        (partial(MQAR, power=0.0), "power must be positive"),
        (partial(ListOps, arguments=1), "two arguments at least"),
        (partial(ListOps, length=1999, longer=1900, depth=2), "fewer than one tree in 100,000"),
        (partial(Sorting, length=8, shortest=9), "shortest is from 1 to length"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_the_rule(make, rule):
    with pytest.raises(ValueError, match=rule):
        make("train", sizes={"train": 10})


# Images as sequences


def test_pixels_are_read_by_row_column_and_channel(monkeypatch):
    image = torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32).mul(7).to(torch.uint8)
    given = Arrays(image, torch.tensor([3, 8]), protocol={"examples": "two"})
    monkeypatch.setattr(sequential, "CIFAR10", lambda split, *, root, holdout: given)
    data = SequentialCIFAR10("train", root="nowhere")
    x, y = everything(data)
    by_hand = [int(image[1, c, i, j]) for i in range(32) for j in range(32) for c in range(3)]
    assert x[1].tolist() == by_hand
    assert y.tolist() == [3, 8]
    assert data.protocol == {"examples": "two", "order": "row, column, channel"}
    grey, _ = everything(SequentialCIFAR10("train", root="nowhere", colour=False))
    assert grey.shape == (2, 1024)
    red, green, blue = image[1].double().flatten(1)
    assert (grey[1] - (0.299 * red + 0.587 * green + 0.114 * blue)).abs().max() <= 0.5


@pytest.mark.parametrize("split", SPLITS)
def test_sequential_mnist_is_mnist(split, data_dir):
    if not (data_dir / "MNIST").exists():
        pytest.skip(f"{data_dir / 'MNIST'} is not there: set ZOO_DATA_DIR to the folder of real data")
    images, read = MNIST(split, root=data_dir), SequentialMNIST(split, root=data_dir)
    assert torch.equal(read.x.view(-1, 1, 28, 28), images.x)
    assert torch.equal(read.y, images.y)
    assert read[torch.arange(3)]["x"].dtype == torch.int64


# Their files


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"mqar, filled"}))
def test_the_data_are_as_the_yaml_says(name):
    small = ["dataset.sizes.train=8", "dataset.sizes.val=4", "dataset.sizes.test=4"]
    config = OmegaConf.to_container(
        composed("train", f"dataset={name}", "model=transformer", *small), resolve=True
    )
    data = loaders(config)
    assert all(data.has(split) for split in SPLITS)
    dataset = config["dataset"]
    assert dataset["kind"] == "tokens"
    batch = data.dataset("test")[torch.arange(4)]
    asked = dataset.get("targets", False)
    assert config["model"]["targets"] == asked
    if asked:
        assert batch["y"].shape == batch["x"].shape
        assert batch["y"].max() < dataset["levels"]
        assert "scored" in data.dataset("test").protocol
    elif "y" in dataset:
        assert list(batch["y"].shape[1:]) == dataset["y"]["shape"]
        assert batch["y"].max() < dataset["y"]["levels"]
    else:
        assert dataset["classes"] == 10
