"""scripts/list.py tells what there is, and its matrix tells the truth."""

import re

import commands
import pytest

from zoo.config.catalogue import group_names, options
from zoo.nn.position import fits

program = commands.program("scripts/list")


@pytest.mark.parametrize("causal", [True, False])
def test_the_matrix_says_what_the_classes_say(causal):
    mixers, positions = program.choices("mixer"), program.choices("position")
    assert set(mixers) == set(options("mixer"))
    assert set(positions) == set(options("position")) - {"auto"}
    head, *lines = program.matrix(causal)
    assert head.split() == ["causal" if causal else "bidirectional", *(name[:6] for name in positions)]
    rows = {line.split()[0]: line.split()[1:] for line in lines[: len(mixers)]}
    for name, mixer in mixers.items():
        cells = dict(zip(positions, rows[name], strict=True))
        none = causal and name in ("efficient", "nystrom")
        for other, position in positions.items():
            cell = cells[other].rstrip("*")
            assert cell in program.FORMS
            assert (cell != "-") == (fits(position, mixer, causal) and not none), (name, other)
        assert sum(cell.endswith("*") for cell in cells.values()) == (not none)


def test_cells_tell_the_form():
    mixers, positions = program.choices("mixer"), program.choices("position")
    told = {
        ("softmax", "rope"): "turn",
        ("softmax", "alibi"): "bias",
        ("softmax", "shaw"): "score",
        ("softmax", "none"): "free",
        ("linear", "rope"): "own",
        ("linear", "alibi"): "own",
        ("mamba", "learned"): "input",
        ("mamba", "rope"): "-",
    }
    for (mixer, position), form in told.items():
        assert program.form(mixers[mixer], positions[position], True) == form


def test_every_choice_of_every_group_is_told_with_its_sentence():
    done = commands.run("scripts/list")
    assert done.code == 0, done.err
    for group in group_names():
        for name in options(group):
            assert f"  {name} " in done.out or f"experiment={name}\n" in done.out, (group, name)
            assert program.sentence(group, name)[0] != "(", (group, name)
    (digits,) = (line for line in done.out.splitlines() if re.match(r"  digits +image ", line))
    facts = ["image", "1", "x", "8", "x", "8", "17", "10", "nats", "1,257", "/", "180", "/", "360"]
    assert digits.split()[1:] == facts
    assert "  tinyshakespeare     text          256           by its text" in done.out


def test_choices_of_ones_own_stand_beside_ours(tmp_path):
    (tmp_path / "mixer").mkdir()
    (tmp_path / "mixer" / "mine.yaml").write_text("# Mine, of 2031: it mixes\n_target_: paperx.Mine\n")
    (tmp_path / "mixer" / "bare.yaml").write_text("_target_: paperx.Bare\n")
    done = commands.run("scripts/list", "mixer", "--config-dir", tmp_path)
    assert done.code == 0, done.err
    assert re.search(r"^  mine +Mine, of 2031: it mixes$", done.out, re.M)
    assert re.search(r"^  bare +\(its file opens without a sentence\)$", done.out, re.M)
    assert re.search(r"^  softmax ", done.out, re.M)


def test_a_section_that_is_not_there_is_named():
    done = commands.run("scripts/list", "mixers")
    assert done.code == 2
    assert "mixers is no section; there are matrix, backbone" in done.err
