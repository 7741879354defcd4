"""The page of a comparison: whole in itself, true to the table, and it sorts in a real browser where there is one."""

import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import commands
import pytest
import torch
from test_plot import Runs, plain

from zoo.data.arrays import Arrays
from zoo.jobs.points import picture
from zoo.runs import Run
from zoo.runs.svg import linear, logarithmic

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAG7buVgAAAABJRU5ErkJggg=="
)
VOID = {"meta", "img", "br"}


class Tree(HTMLParser):
    """Raises where tags do not close in order; gathers text by tag, and what the page would load."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.loads = [], {}, []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts.setdefault(tag, []).append(data)


@pytest.fixture
def runs(tmp_path):
    """Two models of two sizes, two seeds each, with curves, states and samples; names that HTML must escape."""
    runs = Runs(tmp_path / "runs")
    for name, base, state in (("a<b>&c", 3.0, 4096), ("plain", 10.0, 512)):
        for dim in (8, 16):
            for seed in (0, 1):
                value = base + 8 / dim + 0.1 * seed
                numbers = [
                    plain("nats", value, "nats/example"),
                    plain("state_bytes_at_1x", state * dim, "bytes"),
                ]
                runs.write(name, numbers, seed=seed, dim=dim)
                (folder,) = runs.path.glob(f"{name}-Rotary-{dim}-{seed}")
                told = json.loads((folder / "results.json").read_text())
                told |= {"steps": 40, "seconds": 20.0, "parameters": 1000 * dim}
                told["config"]["train_flops"] = 1e9 * dim
                (folder / "results.json").write_text(json.dumps(told))
                lines = [f"{step},val/nats,{value + 100 / step}" for step in (10, 20, 30, 40)]
                (folder / "metrics.csv").write_text("step,name,value\n" + "\n".join(lines) + "\n50,val/na")
                (folder / "samples").mkdir()
                if name == "plain":
                    (folder / "samples" / "final.png").write_bytes(PIXEL)
                else:
                    (folder / "samples" / "final.txt").write_text("To <be>")
    return runs


PLOTS = ("val/nats:steps", "nats:parameters", "nats:state", "nats:model.dim")


@pytest.fixture
def page(runs, tmp_path):
    """The page, and what its tags hold."""
    words = [word for plot in PLOTS for word in ("--plot", plot)]
    out = tmp_path / "page" / "one.html"
    keys = ("--rows", "name,model.dim", "--baseline", "plain 8")
    done = commands.run("scripts/compare", runs.path, *keys, *words, "--format", "html", "--out", out)
    assert done.code == 0, done.err
    assert done.out.strip() == str(out)
    tree = Tree()
    tree.feed(out.read_text())
    assert tree.open == []
    return out, tree


def test_the_page_loads_nothing_from_elsewhere(page):
    out, tree = page
    assert len(tree.loads) == 2
    assert all(target.startswith("data:image/png;base64,") for target in tree.loads)
    text = out.read_text()
    assert not re.search(r"https?://|url\(|@import|<link", text)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme:dark" in text


def test_the_page_has_table_figures_samples_protocols_and_its_command(page):
    _, tree = page
    cells = "|".join(tree.texts["td"])
    assert "a<b>&c" in cells
    assert "4.05" in cells
    assert "−7.00 (p < 0.001, n = 2)" in cells
    assert "--rows name,model.dim" in "".join(tree.texts["code"])
    heads = tree.texts["h2"]
    assert heads == ["Nats on val while training", "Nats by parameters", "Nats by the size of the state",
                     "Nats by model.dim", "Samples", "Protocols"]  # fmt: skip
    assert "To <be>" in tree.texts["pre"]
    assert "all rows" in tree.texts["dd"]
    assert any(
        "nats: exact; test split, 9 examples of text8; best weights; statistics" in t
        for t in tree.texts["dt"]
    )
    drawn = " ".join(tree.texts["text"])
    for word in ("optimizer steps", "parameters", "state of one example", "4 KiB", "a<b>&c", "val nats"):
        assert word in drawn, word
    assert any("(n = 2) at" in told for told in tree.texts["title"])


def test_curves_are_means_over_seeds_at_the_steps_that_all_have(runs):
    from zoo.runs.figures import figure
    from zoo.runs.gather import read

    results = read([runs.path])[0]
    told = figure("val/nats:seconds", results, ["name", "model.dim"])
    line = next(line for line in told.lines if line.name == "plain model.dim=8")
    assert [point.x for point in line.points] == pytest.approx([5, 10, 15, 20])
    assert line.points[-1].y == pytest.approx(10 + 1 + 0.05 + 100 / 40)
    assert line.points[-1].deviation == pytest.approx(0.1 / 2**0.5)
    assert "n = 2" in told.source
    assert [p.x for p in figure("val/nats:flops", results, ["name"]).lines[0].points][-1] == pytest.approx(
        12e9
    )
    with pytest.raises(ValueError, match=r"no run has the metric val/loss; logged were: val/nats"):
        figure("val/loss:steps", results, ["name"])
    with pytest.raises(ValueError, match="a curve is drawn over steps, seconds, flops"):
        figure("val/nats:parameters", results, ["name"])


@pytest.mark.parametrize(
    ("axis", "xs"), [("parameters", [8e3, 16e3]), ("flops", [8e9, 16e9]), ("steps", [40, 40])]
)
def test_a_number_is_drawn_against_what_it_cost(runs, axis, xs):
    from zoo.runs.figures import figure
    from zoo.runs.gather import read

    told = figure(f"nats:{axis}", read([runs.path])[0], ["name"])
    (line,) = (line for line in told.lines if line.name == "plain")
    assert [point.x for point in line.points] == xs
    assert sorted(point.y for point in line.points) == pytest.approx([10.55, 11.05])
    assert {point.n for point in line.points} == {2}


def test_x_may_be_an_option_and_figures_come_one_at_a_time(runs, tmp_path):
    done = commands.run("scripts/compare", runs.path, "--rows", "name", "--plot", "nats", "--x", "parameters",
                        "--out", tmp_path / "one")  # fmt: skip
    assert done.code == 0, done.err
    assert "Nats by parameters" in (tmp_path / "one.svg").read_text()
    done = commands.run("scripts/compare", runs.path, "--plot", "nats:seed", "--plot", "nats:parameters")
    assert done.code == 1
    assert "--format html" in done.err


def test_pictures_of_several_runs_stand_in_one(runs, tmp_path):
    done = commands.run(
        "scripts/compare",
        runs.path,
        "--rows",
        "name,model.dim",
        "--plot",
        "samples",
        "--out",
        tmp_path / "side",
    )
    assert done.code == 0, done.err
    assert (tmp_path / "side.png").read_bytes()[:4] == b"\x89PNG"
    for folder in runs.path.glob("plain*"):
        shutil.rmtree(folder)
    done = commands.run("scripts/compare", runs.path, "--plot", "samples", "--out", tmp_path / "none")
    assert done.code == 1
    assert "no run has a picture" in done.err


def coloured(path):
    """Whether a picture has the colours of samples and of ways."""
    from matplotlib.image import imread

    red, _, blue, _ = imread(path).reshape(-1, 4).T
    return [((red < 0.2) & (blue > 0.6)).any(), ((red > 0.8) & (blue < 0.6)).any()]


def test_samples_of_points_are_a_text_and_a_picture(tmp_path):
    points = tmp_path / "runs"
    words = ("model=rectified_flow", "dataset.sizes={train:90,val:50,test:50}", "backbone.width=8")
    done = commands.train(points, "experiment=rectified_flow/moons", *words, "evaluate.metrics=[nll]")
    assert done.code == 0, done.err
    samples = commands.only(points) / "samples"
    assert len((samples / "final.txt").read_text().split("----")) == 4
    assert set(Run.open(samples.parent).results["samples"]) == {"final.txt", "final.png"}
    assert coloured(samples / "final.png") == [True, True]
    done = commands.run("scripts/compare", points, "--plot", "samples", "--out", tmp_path / "side")
    assert done.code == 0, done.err
    done = commands.run("scripts/compare", points, "--format", "html")
    assert (
        "data:image/png;base64," + base64.b64encode((samples / "final.png").read_bytes()).decode() in done.out
    )


def test_a_picture_of_points_has_no_ways_where_the_model_has_none(tmp_path):
    path = picture(torch.nn.Module(), torch.rand(5, 2), Arrays(torch.rand(9, 2)), tmp_path / "final.png")
    assert coloured(path) == [True, False]


def test_a_run_ends_well_where_points_cannot_be_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    path = tmp_path / "final.png"
    assert picture(torch.nn.Module(), torch.rand(5, 2), Arrays(torch.rand(9, 2)), path) is None
    assert "final.png is not drawn: matplotlib is not installed" in capsys.readouterr().err


def test_ticks_are_round_and_inside():
    assert linear(0.13, 1.02) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert logarithmic(3, 150) == [5, 10, 20, 50, 100]
    assert logarithmic(3, 15_000) == [10, 100, 1000, 10_000]
    assert linear(5, 5) == [5.0]


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed")
def test_a_click_sorts_in_a_real_browser(page, tmp_path):
    out, _ = page
    probe = """<script>
    const name=r=>r.cells[0].textContent+r.cells[1].textContent;
    const told=[],rows=()=>[...document.querySelectorAll('tbody tr')].map(name);
    told.push(rows());
    for(const i of [2,2,1]){document.querySelectorAll('.sort th')[i].click();told.push(rows())}
    const big=[...document.querySelectorAll('svg')].every(s=>s.getBoundingClientRect().width>300);
    const images=[...document.images].every(i=>i.complete&&i.naturalWidth===1);
    document.title=JSON.stringify({told,big,images});
    </script></body>"""
    (tmp_path / "probe.html").write_text(out.read_text().replace("</body>", probe))
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--dump-dom", (tmp_path / "probe.html").as_uri()],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title, done.stderr[-500:]
    said = json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    odd, even = "a<b>&c", "plain"
    assert said["told"][1] == [f"{odd}16", f"{odd}8", f"{even}16", f"{even}8"]
    assert said["told"][2] == said["told"][1][::-1]
    assert said["told"][3] == [f"{even}8", f"{odd}8", f"{even}16", f"{odd}16"]
    assert said["big"]
    assert said["images"]
