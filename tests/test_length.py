"""Longer contexts and speed: targets, sums and state sizes against what is worked out by hand."""

import json
import math
from functools import partial

import commands
import pytest
import torch
from torch import nn

from zoo.evaluation import by_length, likelihood, speed, strided
from zoo.evaluation.length import targets, windows
from zoo.evaluation.speed import state_bytes
from zoo.evaluation.stride import check as check_stride
from zoo.models import Autoregressive, SequenceClassifier
from zoo.nn import LRU, S4, Attention, LearnedPosition, MultiplicativePosition, NoPosition, Rotary
from zoo.types import PAD, scored

LN2 = math.log(2)
FACTS = {"name": "fake", "kind": "text", "shape": [4], "levels": 50, "unit": "bits/char"}


class Blocks:
    """A text 0, 1, 2 ... in windows of T tokens side by side, the last of them with PAD."""

    def __init__(self, N, T=4, **protocol):
        self.N, self.T = N, T
        self.protocol = {"context": T, "windows": "non-overlapping", **protocol}
        self.counts = {"tokens": N, "chars": N, "bytes": 2 * N, "words": N // 5}

    def __len__(self):
        return -(-self.N // self.T)

    def __getitem__(self, indices):
        places = indices[:, None] * self.T + torch.arange(self.T)
        return {"x": places.masked_fill(places >= self.N, PAD)}


class Nearby(nn.Module):
    """A token costs 1 nat more for each of the last `memory` tokens that its context lacks; it keeps what it saw."""

    kind = "exact"

    def __init__(self, memory=6, end=None):
        super().__init__()
        self.memory, self.end, self.seen = memory, end, []

    def nats(self, x, y=None, *, since=0):
        if self.end and x.shape[1] > self.end:
            raise ValueError(f"position {x.shape[1] - 1} is beyond a table of length={self.end}")
        self.seen.append(x)
        t = torch.arange(x.shape[1])
        return ((1.0 + (self.memory - t).clamp(min=0)) * scored(x))[:, since:]

    def log_prob(self, x, y=None, *, since=0):
        return -self.nats(x, y, since=since).sum(1)


def model(mixer=Attention, *, position=None, length=8, dim=8, depth=2, levels=5, **more):
    torch.manual_seed(0)
    return Autoregressive(
        shape=(length,), levels=levels, dim=dim, depth=depth, mixer=mixer, position=position, **more
    ).eval()


def measured(*args, **more):
    numbers, curves = by_length(*args, facts=FACTS, split="test", **more)
    return {number["name"]: number for number in numbers}, curves


def test_only_tokens_from_since_on_are_counted():
    net = model(partial(Attention, heads=2)).double()
    x = torch.randint(5, (3, 8))
    x[1, 6:] = PAD
    full = net.log_prob(x)
    assert torch.allclose(net.log_prob(x, since=0), full, atol=0, rtol=0)
    for k in (1, 5, 7):
        # the chain rule: what the first k tokens alone are told with
        assert torch.allclose(net.log_prob(x, since=k), full - net.log_prob(x[:, :k]), atol=1e-12)
    assert net.log_prob(x, since=7)[1] == 0


@pytest.mark.parametrize("since", [-1, 8])
def test_since_leaves_a_token(since):
    with pytest.raises(ValueError, match=f"since={since}.*try 0 to 7"):
        model(LRU).log_prob(torch.zeros(1, 8, dtype=torch.long), since=since)


def test_units_divide_by_what_was_counted():
    x = torch.tensor([[1, 2, 3, 4], [4, 5, 6, PAD]])
    counts = {"tokens": 7, "chars": 7, "bytes": 14, "words": 2}
    found = likelihood(
        Nearby(memory=3), [{"x": x}], facts=FACTS, split="test", options={"since": 2}, counts=counts
    )
    values = {number["name"]: number["value"] for number in found}
    # costs are 4, 3, 2, 1 nats: from token 2 on, 3 and 2 nats of 2 and 1 tokens
    assert values == pytest.approx(
        {"bits_per_char": 5 / 3 / LN2, "nats": 5 / 2, "nats_per_token": 5 / 3, "perplexity": math.exp(5 / 3)}
    )
    assert found[0]["protocol"]["since"] == 2
    part = likelihood(Nearby(memory=0), [{"x": x[:1]}], facts=FACTS, split="test", counts=counts)
    assert [number["name"] for number in part] == ["bits_per_char", "nats", "nats_per_token", "perplexity"]
    assert part[0]["value"] == pytest.approx(1 / LN2)  # of 4 symbols, not of the split's 7
    with pytest.raises(ValueError, match="empty from token 3 on"):
        likelihood(Nearby(), [{"x": x[1:]}], facts=FACTS, split="test", options={"since": 3})


def test_targets_are_the_same_tokens_at_every_length():
    fake, text = Nearby(), Blocks(30)
    numbers, _ = measured(fake, text, [1, 2, 4], batch_size=100)
    ends = [x[:, -4:] for x in fake.seen]
    assert [x.shape[1] for x in fake.seen] == [4, 8, 16]
    assert all(torch.equal(end, ends[0]) for end in ends)
    # blocks 3 ... 7 of the text, the last of two tokens
    assert ends[0].flatten().tolist() == [*range(12, 30), PAD, PAD]
    for x in fake.seen:  # and each window is the text that ends there
        there = scored(x)
        assert torch.equal(x[there], (x[:, :1] + torch.arange(x.shape[1]))[there])
    assert len({json.dumps(n["protocol"]["scored"]) for n in numbers.values()}) == 1


def test_values_by_length_are_those_worked_out_by_hand():
    numbers, _ = measured(Nearby(), Blocks(32), [1, 2, 4])
    # at 1x positions 0 ... 3 cost 7, 6, 5, 4 nats; at 2x positions 4 ... 7 cost 3, 2, 1, 1; at 4x all cost 1
    for m, nats in ((1, 22 / 4), (2, 7 / 4), (4, 1.0)):
        assert numbers[f"bits_per_char_at_{m}x"]["value"] == pytest.approx(nats / LN2)
        assert numbers[f"perplexity_at_{m}x"]["value"] == pytest.approx(math.exp(nats))
        protocol = numbers[f"perplexity_at_{m}x"]["protocol"]
        assert (protocol["context"], protocol["multiple"], protocol["targets"]) == (4 * m, m, "same")
        assert numbers[f"perplexity_at_{m}x"]["count"] == 5
    assert not any("byte" in name for name in numbers)  # no token is one
    assert next(iter(numbers)) == "bits_per_char_at_1x"


def test_a_curve_has_the_nats_of_each_place_of_the_window():
    _, curves = measured(Nearby(), Blocks(30), [1, 2])
    one, two = curves
    assert one["value"] == [7, 6, 5, 4]
    assert two["value"] == [7, 6, 5, 4, 3, 2, 1, 1]
    assert two["position"] == list(range(8))
    assert two["count"] == [7] * 6 + [6] * 2
    assert (two["name"], two["unit"], two["protocol"]["multiple"]) == ("nats_by_position", "nats/token", 2)


def test_a_curve_has_bins_where_windows_are_long():
    _, (curve,) = measured(Nearby(memory=32), Blocks(640, T=64), [1])
    assert curve["width"] == 4
    assert curve["position"] == list(range(0, 64, 4))
    assert curve["value"][:2] == [33 - 1.5, 29 - 1.5]
    assert curve["count"] == [40] * 16


def test_batches_and_the_choice_of_examples_change_no_value():
    whole, _ = measured(Nearby(), Blocks(32), [1, 2], batch_size=100)
    for size in (1, 3):
        small, _ = measured(Nearby(), Blocks(32), [1, 2], batch_size=size)
        assert [n["value"] for n in small.values()] == pytest.approx([n["value"] for n in whole.values()])
    assert targets(8, 3).tolist() == [2, 3, 4, 5, 6, 7]
    assert targets(8, 3, 3).tolist() in ([2, 4, 7], [2, 5, 7])
    assert targets(8, 3, 9).tolist() == [2, 3, 4, 5, 6, 7]
    shapes = [x.shape for x in windows(Blocks(32), targets(8, 2), 2, 3)]
    assert shapes == [(3, 8), (3, 8), (1, 8)]


def test_a_table_that_ends_is_told_in_words():
    numbers, curves = measured(Nearby(end=8), Blocks(32), [1, 2, 4])
    assert numbers["perplexity_at_2x"]["value"] is not None
    stopped = numbers["bits_per_char_at_4x"]
    assert (stopped["value"], stopped["reason"]) == (None, "position 15 is beyond a table of length=8")
    assert [curve["protocol"]["multiple"] for curve in curves] == [1, 2]


@pytest.mark.parametrize("position", [LearnedPosition, MultiplicativePosition])
def test_learned_tables_stop_where_they_end(position):
    net = model(partial(Attention, heads=2), position=position, length=4, levels=50)
    numbers, _ = measured(net, Blocks(48), [1, 2])
    assert numbers["perplexity_at_1x"]["value"] > 1
    assert numbers["perplexity_at_2x"]["value"] is None
    assert "beyond a table of length=4" in numbers["perplexity_at_2x"]["reason"]


def test_numbers_that_are_not_finite_are_told_in_words():
    numbers, _ = measured(Nearby(memory=math.inf), Blocks(32), [1])
    assert numbers["perplexity_at_1x"]["value"] is None
    assert "not finite" in numbers["perplexity_at_1x"]["reason"]


@pytest.mark.parametrize(
    "mixer",
    [partial(Attention, heads=2), LRU, partial(S4, state=4, length=4)],
    ids=["attention", "lru", "s4"],
)
def test_a_longer_window_is_told_as_the_recurrence_tells_it(mixer):
    net = model(mixer, length=4).double()
    x = torch.randint(5, (2, 16))  # four times the length of the training, and of S4's kernel
    h, state = net.backbone.prefill(net.inputs(x[:, :1], None))
    logits = [net.head(h[:, 0]), net.head(h[:, 1])]
    for t in range(1, 15):
        h_t, state = net.backbone.step(net.embed(x[:, t]), state)
        logits.append(net.head(h_t))
    told = torch.stack(logits, 1).log_softmax(-1).gather(-1, x.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(net.nats(x), -told, atol=1e-9)


def overlapping(net, text, stride, **more):
    batches, told = strided(text, stride, **more)
    found = likelihood(
        net, batches, facts=FACTS, split="test", counts=text.counts, protocol={**text.protocol, **told}
    )
    return {number["name"]: number for number in found}


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("N", [3, 4, 5, 8, 11, 30])
def test_overlapping_windows_count_each_token_once_and_give_it_context(N, stride):
    text, counted = Blocks(N), []
    batches, told = strided(text, stride, batch_size=2)
    for batch in batches:
        x, since = batch["x"], batch["since"]
        assert x.shape[1] == 4
        for row in x.tolist():
            there = [token for token in row if token != PAD]
            assert there == list(range(row[0], row[0] + len(there)))
            assert since == (0 if row[0] == 0 else 4 - stride)
            counted += [token for token in row[since:] if token != PAD]
    assert counted == list(range(N))
    assert told == {"windows": f"every {stride}", "since": 4 - stride, "first": "all tokens"}


def test_overlapping_windows_are_told_as_worked_out_by_hand():
    found = overlapping(Nearby(), Blocks(9), 2)
    # positions 0 ... 3 of the first window cost 7, 6, 5, 4 nats, 2 and 3 of the others 5, 4; the last has one less
    nats = 22 + 9 + 9 + 5
    assert found["bits_per_char"]["value"] == pytest.approx(nats / 9 / LN2)
    assert found["bits_per_byte"]["value"] == pytest.approx(nats / 18 / LN2)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(nats / 9))
    protocol = found["perplexity"]["protocol"]
    assert (protocol["context"], protocol["windows"], protocol["since"]) == (4, "every 2", 2)
    some = overlapping(Nearby(), Blocks(30), 2, examples=3)["bits_per_char"]
    assert some["count"] == 3
    assert some["protocol"]["examples"] == "3 evenly spread of 14"


def test_a_stride_as_long_as_the_window_is_windows_side_by_side():
    net, text = model(partial(Attention, heads=2), length=4, levels=50).double(), Blocks(30)
    plain = likelihood(net, [text[torch.arange(8)]], facts=FACTS, split="test", counts=text.counts)
    for number in plain:
        assert overlapping(net, text, 4)[number["name"]]["value"] == pytest.approx(number["value"])


def test_a_stride_of_one_is_the_chain_rule_with_all_context_that_there_is():
    net, text = model(partial(Attention, heads=2), length=4, levels=50).double(), Blocks(11)
    x = torch.arange(11)
    expected = -net.log_prob(x[None, :4]).item()
    expected -= sum(net.log_prob(x[None, t - 3 : t + 1], since=3).item() for t in range(4, 11))
    assert overlapping(net, text, 1)["nats_per_token"]["value"] == pytest.approx(expected / 11)


STRIDES = {
    "no stride": (Nearby(), 0, FACTS, {}, "try a stride from 1 to 4"),
    "a stride beyond the window": (Nearby(), 5, FACTS, {}, "windows have 4 tokens"),
    "no text": (Nearby(), 2, {**FACTS, "kind": "image"}, {}, "no text"),
    "no part of a window": (nn.Linear(1, 1), 2, FACTS, {}, "Linear cannot count a part"),
    "two answers": (Nearby(), 2, FACTS, {"since": 1}, "leave log_prob.since out"),
}


@pytest.mark.parametrize("case", STRIDES)
def test_a_stride_that_cannot_be_is_refused(case):
    net, stride, facts, options, told = STRIDES[case]
    with pytest.raises(ValueError, match=told):
        check_stride(net, Blocks(32), stride, facts, "test", **options)


REFUSED = {
    "no text": (Nearby(), Blocks(32), [1], {**FACTS, "kind": "image"}, "no text"),
    "overlapping windows": (Nearby(), Blocks(32, windows="every 1"), [1], FACTS, "side by side"),
    "a split too short": (Nearby(), Blocks(32), [1, 9], FACTS, "8 windows.*try at most 8"),
    "no multiple": (Nearby(), Blocks(32), [0], FACTS, "at least 1"),
    "no nats": (nn.Linear(1, 1), Blocks(32), [1], FACTS, "Linear does not tell the nats"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_lengths_is_refused(case):
    net, text, multiples, facts, told = REFUSED[case]
    with pytest.raises(ValueError, match=told):
        by_length(net, text, multiples, facts=facts, split="test")


def rates(net, x, multiples, **more):
    return {n["name"]: n for n in speed(net, {"x": x}, multiples, split="val", **more)}


def test_an_attention_remembers_keys_and_values_of_every_token():
    net = model(partial(Attention, heads=4, kv_heads=2), position=Rotary, dim=16)
    found = rates(net, torch.randint(5, (2, 8)), [1, 2])
    for m in (1, 2):
        # 2 blocks, keys and values, 2 heads of 4 float32, 8 m tokens; and the position
        assert found[f"state_bytes_at_{m}x"]["value"] == 2 * 2 * 2 * 4 * 4 * 8 * m + 8


def test_a_recurrence_remembers_as_much_after_any_length():
    found = rates(model(partial(LRU, state=6), position=NoPosition), torch.randint(5, (2, 8)), [1, 4])
    assert [found[f"state_bytes_at_{m}x"]["value"] for m in (1, 4)] == [2 * 6 * 8 + 8] * 2  # complex64


def test_a_tensor_that_lies_in_two_places_is_one():
    x = torch.zeros(3)
    assert state_bytes([x, {"again": (x,)}, None, torch.zeros(2, dtype=torch.complex64)]) == 12 + 16


def test_speed_leaves_the_model_as_it_was():
    net = model(partial(Attention, heads=2), dropout=0.5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = rates(net, torch.randint(5, (4, 8)), [1, 2], hardware={"device": "abacus", "threads": 1})
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net.training
    assert all(p.grad is None for p in net.parameters())
    for name in ("train_tokens_per_second_at_2x", "generate_tokens_per_second_at_2x"):
        assert found[name]["value"] > 0
        protocol = found[name]["protocol"]
        assert (protocol["context"], protocol["batch"], protocol["device"]) == (16, 2, "abacus")
    if not torch.cuda.is_available():
        assert found["train_peak_memory_at_1x"]["value"] is None
        assert "GPU only" in found["train_peak_memory_at_1x"]["reason"]


def test_speed_with_targets_and_with_a_table_that_ends():
    net = model(partial(Attention, heads=2), position=LearnedPosition, targets=True)
    x = torch.randint(5, (4, 8))
    numbers = speed(net, {"x": x, "y": x.masked_fill(x > 2, PAD)}, [1, 2], split="val")
    found = {n["name"]: n for n in numbers}
    assert found["generate_tokens_per_second_at_1x"]["value"] > 0
    for name in ("train_tokens_per_second", "generate_tokens_per_second", "state_bytes"):
        assert found[f"{name}_at_2x"]["value"] is None
        assert "beyond a table of length=8" in found[f"{name}_at_2x"]["reason"]


def test_speed_of_what_generates_nothing_is_of_training_and_state():
    net = SequenceClassifier(shape=(8,), levels=5, classes=3, dim=8, depth=1, mixer=LRU, causal=True)
    batch = {"x": torch.randint(5, (4, 8)), "y": torch.arange(4) % 3}
    found = {n["name"]: n for n in speed(net, batch, [1], split="val")}
    assert found["train_tokens_per_second_at_1x"]["value"] > 0
    assert found["state_bytes_at_1x"]["value"] > 0
    assert found["generate_tokens_per_second_at_1x"]["value"] is None
    assert "generates no tokens" in found["generate_tokens_per_second_at_1x"]["reason"]


def test_the_command_writes_numbers_and_curves_and_replaces_them(tmp_path):
    words = ("model=gpt", "model.dim=8", "model.depth=1", "mixer.heads=2", "dataset=pydoc")
    done = commands.train(tmp_path, *words, "dataset.source.length=8", "evaluate.n=0", "evaluate.splits=[]")
    assert done.code == 0, done.err
    run = commands.only(tmp_path)
    ask = (f"run={run}", "n=0", "splits=[val]", "lengths=[1,2]", "speed=true", "examples=20", "batch_size=8")
    first = commands.run("evaluate", *ask)
    assert first.code == 0, first.err
    assert "bits_per_char_at_2x –  (position 15 is beyond a table of length=8" in first.out
    results = json.loads((run / "results.json").read_text())
    numbers = {number["name"]: number for number in results["numbers"]}
    assert numbers["bits_per_char_at_1x"]["protocol"]["multiple"] == 1
    assert numbers["state_bytes_at_1x"]["value"] == 2 * 8 * 4 * 8 + 8
    assert (
        numbers["train_tokens_per_second_at_1x"]["protocol"]["torch"] == torch.__version__.partition("+")[0]
    )
    assert [curve["name"] for curve in results["curves"]] == ["nats_by_position"]
    assert results["numbers"][0]["name"] == "bits_per_char"  # the headline is the whole split's
    assert commands.run("evaluate", *ask).code == 0
    again = json.loads((run / "results.json").read_text())
    assert [n["name"] for n in again["numbers"]] == [n["name"] for n in results["numbers"]]
    assert len(again["curves"]) == 1
    done = commands.run("evaluate", f"run={run}", "n=0", "splits=[val]", "stride=4")
    assert done.code == 0, done.err
    side, over = (
        number
        for number in json.loads((run / "results.json").read_text())["numbers"]
        if number["name"] == "bits_per_char"
    )
    assert (side["protocol"]["windows"], over["protocol"]["windows"]) == ("non-overlapping", "every 4")
    assert side["value"] != over["value"]
    done = commands.run("evaluate", f"run={run}", "stride=9")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "try a stride from 1 to 8" in done.err
    done = commands.run("evaluate", f"run={run}", "lengths=[0]")
    assert done.code == 1
    assert "lengths=[0]" in done.err
