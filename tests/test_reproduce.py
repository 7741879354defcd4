"""scripts/reproduce.py: whether a paper's number comes out, told by the exit status."""

import json
import re

import commands
import pytest
from conftest import ROOT, composed
from omegaconf import OmegaConf

from zoo.config import resolvers
from zoo.config.catalogue import options
from zoo.jobs import evaluate
from zoo.runs import Run
from zoo.runs.reproduction import changes, compared, verdicts

SAID = {"published": {"nats": 88.4}, "tolerance": {"nats": 0.5}, "protocol": "test, 10,000 images"}
ROW = """# @package _global_
# A row of the test: 50 nats
defaults:
  - override /model: vae
  - override /trainer: cpu
model: {latent: 2, encoder: {hidden: [8]}, decoder: {hidden: [8]}}
batch_size: 64
trainer: {max_steps: 2, val_check_interval: 2, limit_val_batches: 1, enable_progress_bar: false}
evaluate: {n: 0, splits: [val], log_prob: {samples: 2}}
experiment:
  paper: A paper, 2031
  source: none
  published: PUBLISHED
  protocol: val, 180 images, two importance samples
  tolerance: TOLERANCE
  budget: cpu, 1 min
"""


def number(value, **more):
    told = {"name": "nats", "value": value, "kind": "exact", "split": "test", "count": 10_000, "stderr": 0.2}
    return {**told, "protocol": {"method": "log_prob", "samples": 9}, **more}


@pytest.mark.parametrize(
    ("value", "verdict", "words"),
    [
        (88.4, "within", "88.4 ± 0.2 (exact, 10000 examples of test; samples 9), published 88.4 ± 0.5: +0"),
        (88.9, "within", "+0.5"),
        (87.9, "within", "-0.5"),
        (89.4, "not within", "+1, 2.0 tolerances away"),
        (86.4, "not within", "-2, 4.0 tolerances away"),
        (float("nan"), "not within", "nan"),
        (None, "not comparable", "the run has none on test: too long"),
    ],
)
def test_a_number_is_within_its_tolerance_or_not(value, verdict, words):
    (told,) = verdicts(SAID, [number(value, reason="too long")])
    assert told.verdict == verdict
    assert words in told.words


def test_the_protocol_says_which_split_counts():
    numbers = [number(1.0, split="train"), number(88.0, split="val"), number(99.0)]
    for protocol, verdict in (
        ("val, each window once", "within"),
        ("the last token, 500 test sequences", "not within"),
    ):
        (told,) = verdicts({**SAID, "protocol": protocol}, numbers)
        assert told.verdict == verdict
    (told,) = verdicts(SAID, numbers[:2])
    assert told.verdict == "not comparable"


def test_a_number_is_compared_with_what_it_was_measured_for():
    """One training may be measured for several rows; a row's value may be corrected afterwards."""
    rk45, euler, heun = (
        number(value, protocol={"solver": solver})
        for value, solver in ((88.0, "rk45"), (99.0, "euler"), (70.0, "heun"))
    )
    one_step = {**SAID, "published": {"nats": 98.8}}
    first = compared([rk45], SAID)
    told = {"value": 88.4, "paper": "", "protocol": "test, 10,000 images", "tolerance": 0.5}
    assert first == [{**rk45, "published": told}]
    numbers = [*first, *compared([euler], one_step), heun]
    for row, found in ((SAID, "88 "), (one_step, "99 "), ({**SAID, "published": {"nats": 99.1}}, "99 ")):
        (verdict,) = verdicts(row, numbers)
        assert verdict.verdict == "within"
        assert verdict.words.startswith(found)
    assert compared([rk45], {**SAID, "changed": ["batch_size"]}) == [rk45]
    assert compared([number(1.0, split="val")], SAID) == [number(1.0, split="val")]
    assert compared([rk45], None) == [rk45]


def test_a_number_measured_again_is_compared_with_the_same(tmp_path):
    run = Run(tmp_path)
    run.write_results({"numbers": compared([number(88.0)], SAID)})
    evaluate.add(run, [number(88.1), number(70.0, protocol={"method": "log_prob", "samples": 1})])
    again, other = run.results["numbers"]
    assert (again["value"], again["published"]["value"]) == (88.1, 88.4)
    assert "published" not in other


def test_an_older_result_keeps_its_published_value_when_more_is_measured(tmp_path):
    run = Run(tmp_path)
    run.write_results({"config": {"experiment": SAID}, "numbers": [number(88.0)]})
    evaluate.add(run, [number(70.0, protocol={"method": "log_prob", "samples": 1})])
    assert [n.get("published", {}).get("value") for n in run.results["numbers"]] == [88.4, None]


def test_a_bound_is_told_as_one():
    (told,) = verdicts(SAID, [number(88.0, kind="lower bound")])
    assert told.words.startswith("≤ 88 ")


def test_every_published_row_names_its_split(monkeypatch):
    monkeypatch.setattr(resolvers, "vocabulary_size", lambda source: 65)
    told = [
        OmegaConf.load(ROOT / "configs" / "experiment" / f"{name}.yaml") for name in options("experiment")
    ]
    named = [row.experiment for row in told if row.experiment.published]
    assert len(named) > 10
    for said in named:
        assert re.search(r"\b(test|val|train)(ing)?\b", said.protocol), said


def test_what_changes_a_row_is_named_and_what_does_not_is_not():
    def config(*words):
        return OmegaConf.to_container(composed("train", "dataset=digits", *words), resolve=True)

    row = config()
    assert changes(row, config("seed=3", "num_workers=2", "runs=elsewhere", "trainer.devices=2")) == []
    assert changes(row, config("optimizer.lr=0.5")) == ["optimizer.lr"]
    assert changes(row, config("++evaluate.log_prob.samples=7")) == ["evaluate.log_prob.samples"]


@pytest.fixture
def row(tmp_path):
    """Writes an experiment of the user's own and runs the command on it."""

    def run(published, tolerance, *words):
        path = tmp_path / "mine" / "experiment" / "row.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ROW.replace("PUBLISHED", published).replace("TOLERANCE", tolerance))
        own = ("--config-dir", tmp_path / "mine", "experiment=row", f"runs={tmp_path / 'runs'}")
        return commands.run("scripts/reproduce", *own, *words)

    return run


def test_the_status_tells_what_became_of_a_row(row, tmp_path):
    done = row("{nats: 100.0}", "{nats: 5000.0}")
    assert done.code == 0, done.err
    assert "paper     A paper, 2031" in done.out
    assert re.search(r"^within: nats ≤ .* published 100 ± 5000", done.out, re.M)
    done = row("{nats: 1.0}", "{nats: 0.5}")
    assert done.code == 2
    assert "is finished already" in done.out
    assert re.search(r"^not within: nats ", done.out, re.M)
    (folder,) = tmp_path.glob("runs/*/results.json")
    assert json.loads(folder.read_text())["steps"] == 2


MOONS = (
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "trainer.limit_val_batches=1",
    "trainer.enable_progress_bar=false",
    "backbone.width=8",
    "evaluate.samples=50",
    "evaluate.n=0",
    "dataset.sizes={train:600,val:50,test:50}",
)


def test_one_training_measured_for_two_rows_has_both(tmp_path, monkeypatch):
    """rectified_flow/moons_one_step after rectified_flow/moons, at a budget that leaves the rows what they are."""
    monkeypatch.setattr("zoo.runs.reproduction.changes", lambda row, config: [])
    for name, theirs in (("moons", "0.12"), ("moons_one_step", "6.232")):
        words = (f"experiment=rectified_flow/{name}", f"runs={tmp_path}", *MOONS)
        done = commands.run("scripts/reproduce", *words)
        assert done.code == 2, done.err
        (told,) = re.findall("^not within: w2_squared .*", done.out, re.M)
        assert f"published {theirs} ±" in told
        assert f"solver {'rk45' if name == 'moons' else 'euler'};" in told
    assert "is finished already" in done.out
    (path,) = tmp_path.glob("*/results.json")
    numbers = [n for n in json.loads(path.read_text())["numbers"] if n["name"] == "w2_squared"]
    assert [(n["protocol"]["solver"], n["published"]["value"]) for n in numbers] == [
        ("rk45", 0.12),
        ("euler", 6.232),
    ]
    done = commands.run("scripts/compare", tmp_path, "--rows", "protocol.solver")
    assert re.search(r"^euler .* 6\.232\[1\] ", done.out, re.M)
    assert re.search(r"^rk45 .* 0\.12\[2\] ", done.out, re.M)


def test_a_changed_row_is_not_comparable(row, tmp_path):
    done = row("{nats: 100.0}", "{nats: 5000.0}", "trainer.max_steps=3")
    assert done.code == 2, done.err
    assert "not comparable: the row was changed in trainer.max_steps" in done.out
    assert "\nwithin" not in done.out
    (path,) = tmp_path.glob("runs/*/results.json")
    assert not any("published" in number for number in json.loads(path.read_text())["numbers"])


def test_a_budget_of_its_own_says_so_and_trains_nothing(row, tmp_path):
    done = row("{}", "{}")
    assert done.code == 2
    assert "is a budget of its own" in done.out
    assert not (tmp_path / "runs").exists()


def test_an_error_is_no_verdict():
    done = commands.run("scripts/reproduce")
    assert done.code == 1
    assert "say experiment=<name>" in done.err
