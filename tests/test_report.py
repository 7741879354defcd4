"""scripts/report.py: a page's tables and figures are what its runs say, and all else in it is left alone."""

import commands
import pytest
from test_plot import Runs, plain

PAGE = """# Results

Words before, with | bars | and <!-- a comment -->.

<!-- compare: RUNS --rows position --facts steps -->
an old table
<!-- end -->

Words between.

<!-- compare: RUNS --rows position --plot nats:model.dim --out figures/sizes -->
<!-- end -->

Words after.
"""


@pytest.fixture
def page(tmp_path):
    """A page of two positions' runs, and the runs."""
    runs = Runs(tmp_path / "runs")
    for position, base in (("Rotary", 3.0), ("ALiBi", 2.0)):
        for seed in (0, 1):
            runs.write(
                "gpt", [plain("nats", base + 0.1 * seed, "nats/example")], seed=seed, position=position
            )
    path = tmp_path / "docs" / "page.md"
    path.parent.mkdir()
    path.write_text(PAGE.replace("RUNS", str(runs.path)))
    return path, runs


def test_a_page_is_made_anew_from_its_runs(page):
    path, _ = page
    done = commands.run("scripts/report", path)
    assert done.code == 0, done.err
    assert done.out == f"{path}: 2 blocks, made anew\n"
    text = path.read_text()
    assert "| ALiBi | = **2.050 ± 0.071 (2)** |" in text
    assert "an old table" not in text
    assert "![nats by model.dim](figures/sizes.png)" in text
    assert (path.parent / "figures" / "sizes.png").is_file()
    for word in (
        "Words before, with | bars | and <!-- a comment -->.",
        "\nWords between.\n",
        "Words after.\n",
    ):
        assert word in text
    assert commands.run("scripts/report", path).out == f"{path}: 2 blocks, as its runs say\n"
    assert path.read_text() == text


def test_check_tells_a_page_that_is_not_what_its_runs_say(page):
    path, runs = page
    before = path.read_text()
    assert commands.run("scripts/report", "--check", path).code == 2
    assert path.read_text() == before
    assert not (path.parent / "figures").exists()
    assert commands.run("scripts/report", path).code == 0
    assert commands.run("scripts/report", "--check", path).code == 0
    runs.write("gpt", [plain("nats", 9.0, "nats/example")], seed=2, position="ALiBi")
    assert commands.run("scripts/report", "--check", path).code == 2


def test_what_has_no_runs_stays_and_is_told(page):
    path, runs = page
    assert commands.run("scripts/report", path).code == 0
    before = path.read_text()
    runs.path.rename(runs.path.with_name("elsewhere"))
    done = commands.run("scripts/report", path)
    assert done.code == 1
    assert done.err.count("left as it was: ") == 2
    assert "there is no folder" in done.err
    assert path.read_text() == before


def test_a_page_without_a_command_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("# Nothing\n")
    done = commands.run("scripts/report", tmp_path / "page.md")
    assert done.code == 1
    assert "is no page with <!-- compare: ... -->" in done.err
