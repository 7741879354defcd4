"""Figures: what they show is told by results.json, and each word of it stands in the picture."""

import json
import re
import statistics
import sys
from itertools import pairwise

import commands
import pytest

from zoo.runs.figures import figure
from zoo.runs.gather import read
from zoo.runs.plot import COLOURS, in_bytes, spread_out

STOP = "position 63 is beyond a table of length=64; make position.length larger"


class Runs:
    """Writes results.json files of runs with positions, sizes and seeds."""

    def __init__(self, path):
        self.path = path

    def write(self, name, numbers, *, seed=0, position="Rotary", dim=8):
        config = {
            "seed": seed,
            "model": {"_target_": "zoo.models.Autoregressive", "dim": dim},
            "position": {"_target_": f"zoo.nn.{position}"},
            "dataset": {"name": "text8"},
        }
        folder = self.path / f"{name}-{position}-{dim}-{seed}"
        folder.mkdir(parents=True)
        about = {"status": "finished", "identity": folder.name, "name": name, "version": "0.1.0+abc"}
        (folder / "results.json").write_text(json.dumps({**about, "config": config, "numbers": numbers}))

    def by_length(self, position, values, seed=0, **protocol):
        numbers = []
        for m, value in values.items():
            how = {"method": "nats", "context": 64 * m, "multiple": m, "targets": "same", **protocol}
            number = plain(f"bits_per_char_at_{m}x", value, "bits/char", protocol=how)
            numbers.append(number if value is not None else {**number, "reason": STOP})
        self.write("gpt", numbers, seed=seed, position=position)


def plain(name, value, unit="", **more):
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "kind": "exact",
        "split": "test",
        "count": 9,
        "protocol": {"method": "statistics"},
        "weights": {"which": "best", "averaged": False},
        **more,
    }


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path / "runs")


def shown(runs, what, *keys, **more):
    return figure(what, read([runs.path])[0], keys, **more)


def drawn(runs, tmp_path, *words):
    """The words of the picture that compare.py draws."""
    out = tmp_path / "figures" / "one.png"
    done = commands.run("scripts/compare", runs.path, *words, "--out", out)
    assert done.code == 0, done.err
    assert done.out.split() == [str(out), str(out.with_suffix(".svg"))]
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return re.sub(r"<[^>]*>", "\n", out.with_suffix(".svg").read_text())


def extrapolation(runs):
    for seed, shift in enumerate((0.0, 0.1, 0.3)):
        runs.by_length("Rotary", {1: 2.0 + shift, 2: 3.0 + shift, 4: 5.0 + shift}, seed)
        runs.by_length("LearnedPosition", {1: 2.1 + shift, 2: None, 4: None}, seed)


def test_extrapolation_is_a_line_per_row_with_the_deviation_over_seeds(runs):
    extrapolation(runs)
    told = shown(runs, "extrapolation", "position")
    learned, rotary = told.lines
    assert [p.x for p in rotary.points] == [1, 2, 4]
    assert [p.y for p in rotary.points] == pytest.approx([2 + 0.4 / 3, 3 + 0.4 / 3, 5 + 0.4 / 3])
    assert rotary.points[0].deviation == pytest.approx(statistics.stdev([2.0, 2.1, 2.3]))
    assert rotary.points[0].n == 3
    assert rotary.stop is None
    assert (learned.name, len(learned.points), learned.stop) == ("LearnedPosition", 1, (2, STOP))
    assert told.y == "bits per character"
    assert "64 tokens" in told.x
    assert told.source.startswith(
        "Source: text8, test split; 6 runs; mean ± standard deviation over seed, n = 3; zoo"
    )


def test_a_picture_tells_rows_axes_units_stops_and_sources(runs, tmp_path):
    extrapolation(runs)
    text = drawn(runs, tmp_path, "--plot", "extrapolation", "--rows", "position")
    for word in (
        "Rotary",
        "LearnedPosition ✕",
        "bits per character",
        "context, in multiples of the training length",
        "1×",
        "4×",
        "✕ LearnedPosition has no value at 2×: position 63 is beyond a table of length=64",
        "Source: text8, test split; 6 runs",
    ):
        assert word in text, word
    assert "make position.length larger" not in text


def test_a_table_of_rows_tells_in_words_why_a_cell_is_empty(runs):
    extrapolation(runs)
    done = commands.run("scripts/compare", runs.path, "--rows", "position", "--metric", "bits_per_char_at_2x")
    assert done.code == 0, done.err
    assert done.out.count(f"LearnedPosition has no bits_per_char_at_2x: {STOP}") == 1
    assert "nan" not in done.out


def test_the_same_runs_give_the_same_picture(runs, tmp_path):
    extrapolation(runs)
    words = ("--plot", "extrapolation", "--rows", "position")
    drawn(runs, tmp_path, *words)
    files = [tmp_path / "figures" / f"one.{end}" for end in ("png", "svg")]
    first = [file.read_bytes() for file in files]
    drawn(runs, tmp_path, *words)
    assert [file.read_bytes() for file in files] == first


def test_recall_is_accuracy_by_state_size(runs, tmp_path):
    for seed, right in enumerate((0.5, 0.7)):
        numbers = [plain("accuracy", right), plain("state_bytes_at_1x", 4096, "bytes")]
        runs.write("linear", numbers, seed=seed, position="NoPosition")
        numbers = [plain("accuracy", 1.0), plain("state_bytes_at_1x", 65536, "bytes")]
        runs.write("gpt", numbers, seed=seed)
    runs.write("unmeasured", [plain("accuracy", 0.1)], position="ALiBi")
    told = shown(runs, "recall", "name")
    assert [(line.name, line.points[0].x, line.points[0].y) for line in told.lines] == [
        ("gpt", 65536, 1.0),
        ("linear", 4096, pytest.approx(0.6)),
    ]
    text = drawn(runs, tmp_path, "--plot", "recall", "--rows", "name")
    for word in ("accuracy (%)", "state of one example", "4 KiB", "64 KiB", "linear", "gpt"):
        assert word in text, word


def test_a_number_by_a_config_key_is_a_line_where_the_key_is_a_number(runs, tmp_path):
    for dim in (16, 2, 128):
        for seed in (0, 1):
            runs.write("gpt", [plain("nats", 100 / dim + seed, "nats/example")], seed=seed, dim=dim)
    told = shown(runs, "nats:model.dim")
    (line,) = told.lines
    assert [p.x for p in line.points] == [2, 16, 128]
    assert [p.y for p in line.points] == pytest.approx([50.5, 6.75, 1.28125])
    text = drawn(runs, tmp_path, "--plot", "nats:model.dim")
    for word in ("model.dim", "nats per example", "128", "Nats by model.dim"):
        assert word in text, word


def test_a_key_of_words_stands_side_by_side(runs, tmp_path):
    for dim in (8, 16):
        for position in ("Rotary", "ALiBi"):
            runs.write("gpt", [plain("perplexity", 3.0 * dim, "per token")], dim=dim, position=position)
    told = shown(runs, "perplexity:position", "model.dim")
    assert [line.name for line in told.lines] == ["model.dim=8", "model.dim=16"]
    assert [p.x for p in told.lines[0].points] == ["ALiBi", "Rotary"]
    assert not told.connected
    text = drawn(runs, tmp_path, "--plot", "perplexity:position", "--rows", "model.dim")
    assert "ALiBi" in text
    assert "perplexity per token" in text


def test_numbers_of_different_protocols_are_not_averaged(runs):
    runs.by_length("Rotary", {1: 2.0}, seed=0)
    runs.by_length("Rotary", {1: 2.0}, seed=1, examples="30 of 60")
    with pytest.raises(ValueError, match="Rotary averages bits_per_char_at_1x of different protocols"):
        shown(runs, "extrapolation", "position")


def test_a_number_is_drawn_against_what_its_measurement_took(runs):
    """A line for each solver, and no word of the steps that evaluations follow from."""
    ways = [("euler", 1, steps) for steps in (5, 10, 20)] + [("heun", 2, steps) for steps in (5, 10)]
    how = [{"solver": solver, "steps": steps, "nfe": cost * steps} for solver, cost, steps in ways]
    runs.write("flow", [plain("fid", 100 / told["nfe"], protocol=told) for told in how])
    told = shown(runs, "fid:protocol.nfe", "name")
    assert [(line.name, [point.x for point in line.points]) for line in told.lines] == [
        ("solver=euler", [5, 10, 20]),
        ("solver=heun", [10, 20]),
    ]


REFUSED = {
    "no figure of this name": (
        ["--plot", "loss"],
        ["loss", "extrapolation, recall or <metric>:<config key>"],
    ),
    "no lengths": (["--plot", "extrapolation"], ["evaluate.py run=<one> lengths=[1,2,4,8,16]"]),
    "no state size": (["--plot", "recall"], ["evaluate.py run=<one> speed=true"]),
    "no such metric": (["--plot", "bits:seed"], ["no run has the metric bits", "nats"]),
    "no such key": (["--plot", "nats:positoin"], ["positoin", "did you mean position?"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(case, runs, tmp_path):
    runs.write("gpt", [plain("nats", 3.0)])
    words, told = REFUSED[case]
    done = commands.run("scripts/compare", runs.path, *words, "--out", tmp_path / "one")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert all(word in done.err for word in told), done.err
    assert not (tmp_path / "one.png").exists()


def test_without_matplotlib_a_sentence_says_how_to_get_it(runs, tmp_path, monkeypatch):
    runs.write("gpt", [plain("nats", 3.0)])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = commands.run("scripts/compare", runs.path, "--plot", "nats:seed", "--out", tmp_path / "one")
    assert done.code == 1
    assert done.err == "plots need matplotlib, which is not installed; uv sync --extra plot brings it\n"


def test_labels_never_touch_and_stay_inside():
    assert spread_out([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    for heights in ([0.5] * 4, [0.0] * 4, [1.0] * 4, [-2.0, 0.95, 0.96, 3.0]):
        placed = spread_out(heights, 0.1)
        assert all(b - a > 0.0999 for a, b in pairwise(placed))
        assert placed[0] >= 0
        assert placed[-1] <= 1


def test_bytes_are_told_in_powers_of_1024():
    assert [in_bytes(n) for n in (512, 4096, 2.0**21, 2.0**31)] == ["512 B", "4 KiB", "2 MiB", "2 GiB"]


def test_colours_are_those_that_the_colour_blind_tell_apart():
    """Under deuteranopia and protanopia (Vienot et al. 1999) any two stay some way apart, and off the paper."""
    to_lms = [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]

    def seen(colour, blind):
        rgb = [(int(colour[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)]
        long, middle, short = (sum(a * b for a, b in zip(row, rgb)) for row in to_lms)
        if blind == "protan":
            long = 2.02344 * middle - 2.52581 * short
        else:
            middle = 0.494207 * long + 1.24827 * short
        return [x / sum(row) for x, row in zip((long, middle, short), to_lms)]

    for blind in ("protan", "deutan"):
        colours = [seen(colour, blind) for colour in (*COLOURS, "#FFFFFF")]
        for i, a in enumerate(colours):
            for b in colours[:i]:
                assert max(abs(x - y) for x, y in zip(a, b)) > 0.05
