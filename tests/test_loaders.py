"""Batches: each example once per epoch, the same for any number of devices, micro-batches and workers."""

import functools
import math
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from zoo import chance
from zoo.training.batches import Batches, Once
from zoo.training.facts import Gathered
from zoo.training.loaders import Loaders

FACTS = {
    "name": "toy",
    "shape": [3],
    "levels": 7,
    "classes": 2,
    "sizes": {"train": 22, "val": 5, "test": None},
}


class Toy:
    """Indexed by batches; draws from torch's, numpy's and python's generators, as an augmentation would."""

    def __init__(self, split, n=22):
        if split == "test":
            raise LookupError("toy has no test split")
        n = n if split == "train" else 5
        self.x = torch.arange(3 * n).view(n, 3) % 7
        self.y = torch.arange(n) % 2

    def __len__(self):
        return len(self.x)

    def __getitem__(self, indices):
        noise = torch.randint(2, (len(indices), 1)) * np.random.randint(2)
        return {"x": (self.x[indices] + noise) % 7, "y": self.y[indices]}


class Single:
    """A stranger's map-style dataset: one example by an int, as (image, label)."""

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return 22 if self.split == "train" else 5

    def __getitem__(self, i):
        if not isinstance(i, int):
            raise TypeError("one at a time")
        return np.full(3, i % 7), i % 2


def loaders(source=Toy, facts=FACTS, **options):
    return Loaders(source, facts, **{"batch_size": 4, "seed": 0, **options})


def steps(n=23, batch_size=4, epoch=0, **shape):
    """The examples of each optimizer step, over all ranks and micro-batches."""
    world, accumulate = shape.get("world", 1), shape.get("accumulate", 1)
    ranks = []
    for rank in range(world):
        batches = Batches(n, batch_size, seed=3, rank=rank, **shape)
        batches.set_epoch(epoch)
        ranks.append([indices.tolist() for _, indices in batches])
    return [
        sorted(i for r in ranks for a in range(accumulate) for i in r[step * accumulate + a])
        for step in range(len(ranks[0]) // accumulate)
    ]


def test_an_epoch_has_each_example_at_most_once_and_drops_less_than_a_step():
    seen = [*chain.from_iterable(steps(23, 4))]
    assert len(seen) == 20 == len(set(seen))
    assert sorted(chain.from_iterable(steps(24, 4))) == list(range(24))


def test_epochs_and_seeds_have_orders_of_their_own():
    assert steps(epoch=0) != steps(epoch=1)
    assert [i.tolist() for _, i in Batches(9, 3, seed=0)] != [i.tolist() for _, i in Batches(9, 3, seed=1)]


@pytest.mark.parametrize(
    "shape", [{"world": 2}, {"accumulate": 2}, {"world": 2, "accumulate": 2}, {"world": 4}]
)
def test_a_step_has_the_same_examples_on_any_number_of_devices_and_micro_batches(shape):
    assert steps(**shape) == steps()


def test_a_start_within_an_epoch_gives_the_rest_of_it_and_then_whole_epochs():
    whole = Batches(23, 4, seed=1, accumulate=2)
    rest = Batches(23, 4, seed=1, accumulate=2)
    whole.set_epoch(5)
    rest.start(5, 3)
    rest.set_epoch(5)
    for (place, indices), (other, others) in zip(list(whole)[3:], rest, strict=True):
        assert place == other
        assert torch.equal(indices, others)
    rest.set_epoch(6)
    assert len(list(rest)) == len(rest) == 10


def test_a_start_after_an_epochs_last_batch_is_the_next_epochs_first():
    done, following = Batches(23, 4, seed=1), Batches(23, 4, seed=1)
    done.start(2, 5)
    following.set_epoch(3)
    assert [i.tolist() for _, i in done] == [i.tolist() for _, i in following]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("n", [3, 5, 7, 12, 101])
def test_validation_counts_each_example_once_and_gives_all_ranks_as_many_batches(n, world):
    ranks = [
        [i.tolist() for _, i in Once(n, 4, seed=0, split="val", world=world, rank=r)] for r in range(world)
    ]
    assert sorted(i for r in ranks for piece in r for i in piece) == list(range(n))
    assert {len(r) for r in ranks} == {len(Once(n, 4, seed=0, split="val", world=world))}
    assert all(piece for r in ranks for piece in r)


@pytest.mark.parametrize("source", [Toy, Single])
def test_workers_change_no_bit(source):
    here, there = loaders(source), loaders(source, num_workers=2)
    for split in ("train", "val"):
        for one, other in zip(here.loader(split), there.loader(split), strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_drawn_depends_on_the_place_only():
    first = next(iter(loaders().loader("train")))
    torch.manual_seed(99)
    assert torch.equal(first["x"], next(iter(loaders().loader("train")))["x"])
    chance.at("a", 1)
    here = torch.rand(2), np.random.rand()
    chance.at("a", 2)
    assert not torch.equal(here[0], torch.rand(2))
    chance.at("a", 1)
    assert torch.equal(here[0], torch.rand(2))
    assert here[1] == np.random.rand()
    assert chance.key("train", 0, 1, 2) == 6255293836384828940  # of any machine and process


def test_making_a_loader_draws_nothing_from_the_default_generator():
    batches = loaders().loader("train")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    iterator = iter(batches)
    assert torch.equal(state, torch.get_rng_state())
    next(iterator)
    assert not torch.equal(state, torch.get_rng_state())  # keyed to the batch's place


def test_strangers_examples_are_gathered_and_stacked():
    batch = loaders(Single).dataset("train")[torch.tensor([1, 9])]
    assert batch["x"].tolist() == [[1, 1, 1], [2, 2, 2]]
    assert batch["y"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("examples", "said"),
    [([np.zeros(2), np.zeros(3)], r"shapes \(2,\) and \(3,\), which do not stack"), (["a", "b"], "type str")],
)
def test_examples_that_do_not_stack_are_named(examples, said):
    with pytest.raises(ValueError, match=said):
        Gathered(examples)[torch.tensor([0, 1])]


def test_a_split_that_is_not_there_is_no_error_unless_the_facts_promise_it():
    assert not loaders().has("test")
    assert loaders(facts={**FACTS, "sizes": {"val": 0}}).val_dataloader() == []
    with pytest.raises(ValueError, match="toy says test has 9 examples, but: toy has no test split"):
        loaders(facts={**FACTS, "sizes": {"test": 9}}).has("test")


def test_a_fault_of_the_source_is_not_taken_for_a_missing_split():
    def source(split):
        return {}[split]

    with pytest.raises(KeyError):
        loaders(source).has("val")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": [1, 3]}, r"toy says shape \(1, 3\), the data have \(3,\)"),
        ({"levels": 5}, r"toy says levels 5 \(0 to 4\), the data go from 0 to 6"),
        ({"levels": None}, r"toy says real numbers \(levels null\), the data are torch.int64"),
        ({"classes": 1}, r"toy says train has 1 classes \(0 to 0\), the labels go from 0 to 1"),
        (
            {"sizes": {"train": 23}},
            "toy says train has 23 examples, the data have 22; set dataset.sizes.train=22",
        ),
    ],
)
def test_data_that_differ_from_the_facts_are_refused_in_a_sentence(change, said):
    with pytest.raises(ValueError, match=said):
        loaders(facts={**FACTS, **change}).setup("fit")


@pytest.mark.parametrize(
    ("y", "facts", "said"),
    [
        (
            (22,),
            {"targets": True},
            r"toy says y has a target, or PAD, for each token, of shape \(3,\) and levels 7",
        ),
        (
            (22,),
            {"y": {"shape": [4], "levels": 7}},
            r"y is what x follows from, of shape \(4,\) and levels 7; the data",
        ),
        (
            (22, 3),
            {"y": {"shape": [3], "levels": 5}},
            r"levels 5 \(0 to 4\); the y of the data goes from 0 to 5",
        ),
        (None, {"y": {"shape": [3], "levels": 5}}, "levels 5; the data have no y"),
        ((22, 3), {"targets": True}, None),
        ((22,), {"y": {"shape": [], "levels": 6}}, None),
    ],
)
def test_targets_and_sources_are_held_to_the_facts(y, facts, said):
    class Pairs(Toy):
        def __getitem__(self, indices):
            batch = {"x": self.x[indices]}
            if y is not None:
                batch["y"] = (torch.arange(math.prod(y)) % 6).view(y)[indices]
            return batch

    made = loaders(Pairs, {"name": "toy", "shape": [3], "levels": 7, **facts})
    if said is None:
        made.setup()
    else:
        with pytest.raises(ValueError, match=said):
            made.setup()


def test_all_labels_are_checked_where_the_dataset_shows_them():
    class Late(Toy):
        def __init__(self, split):
            super().__init__(split, n=200)
            self.y[101] = 5

    with pytest.raises(ValueError, match="the labels go from 0 to 5"):
        loaders(Late, {**FACTS, "sizes": None}).setup()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 23}, "batch_size=23 is more than the 22 examples of train"),
        ({"batch_size": 5, "accumulate": 2}, "try batch_size=6"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"num_workers": 2, "data_device": "cuda"}, "set num_workers=0"),
        ({"data_device": "cuda"}, "Toy cannot move to cuda"),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_a_sentence(options, said):
    with pytest.raises(ValueError, match=said):
        loaders(**options).train_dataloader()


def test_fingerprints_tell_data_apart():
    def tensors(split, last):
        x = torch.zeros(22, 3, dtype=torch.long)
        x[-1] = last
        return TensorDataset(x)

    facts = {"name": "toy", "shape": [3], "levels": 7}
    prints = []
    for last in (0, 0, 1):
        made = loaders(functools.partial(tensors, last=last), facts)
        made.setup()
        prints.append(made.fingerprints["train"])
    assert prints[0] == prints[1] != prints[2]


def test_measuring_sees_whole_steps_whatever_the_devices():
    first, second = loaders(), loaders(accumulate=2)
    for one, other in zip(first.measuring(), second.measuring(), strict=True):
        assert len(one["x"]) == 4
        assert torch.equal(one["x"], other["x"])
