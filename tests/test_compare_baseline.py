"""What stands beside the numbers of a table: what papers found, and differences to a baseline."""

import csv
import io
import json
import re
import statistics

import pytest
from comparisons import line


def test_published_numbers_stand_beside_ours(folder, table, tmp_path):
    folder.run("VAE", 88.0)
    folder.run("NICE", 95.0, config={"experiment": {"published": {"nats": 94.5}}})
    papers = tmp_path / "papers.csv"
    papers.write_text("row,metric,value\nvae-digits,nats,86.76\nglow,nats,1\n")
    text = table("--published", str(papers))
    assert re.search(r"88\.00\* +86\.76 ", line(text, "vae"))
    assert re.search(r"95\.00 +94\.5 ", line(text, "nice"))
    assert "no row and number for the published nats of glow" in text


def test_differences_are_paired_by_seed_and_tested(grid, table):
    from scipy import stats

    told = table("--rows", "mixer,position", "--baseline", "Attention Rotary", "--format", "json")
    row = next(r for r in json.loads(told)["rows"] if (r["mixer"], r["position"]) == ("Mamba", "ALiBi"))
    (number,) = row["numbers"]
    base, ours = ([v + 0.3 * s + 0.01 * i * s**2 for s in range(3)] for i, v in ((0, 3.0), (3, 2.25)))
    assert number["delta"] == pytest.approx(statistics.mean(ours) - statistics.mean(base))
    assert number["delta_sd"] == pytest.approx(statistics.stdev(a - b for a, b in zip(ours, base)))
    assert number["p"] == pytest.approx(stats.ttest_rel(ours, base).pvalue)
    assert number["pairs"] == 3
    text = table("--rows", "mixer,position", "--baseline", "Attention Rotary")
    assert re.search(r"−0\.700 \(p = 0\.\d+, n = 3\)", text)
    assert "paired by seed; p of a two-sided paired t-test over n pairs" in text


def test_a_baseline_may_be_a_column_or_a_key(grid, table):
    told = table("--rows", "mixer", "--columns", "position", "--baseline", "position=Rotary")
    assert told.splitlines()[0].split() == ["mixer", "ALiBi", "Δ", "ALiBi", "Rotary"]
    assert "−0.483" in line(told, "Attention")  # 2.5 - 3, and a hundredth of seed squared
    assert "+0.267" in line(told, "Mamba")
    assert "Δ Rotary" not in told
    assert told == table("--rows", "mixer", "--columns", "position", "--baseline", "Rotary").replace(
        "differences to Rotary", "differences to position=Rotary"
    )


def test_what_has_no_partner_has_no_difference(folder, table, refusal):
    for seed in range(2):
        folder.run("VAE", 88.0 + seed, seed=seed)
    folder.run("NICE", 95.0, seed=7)
    folder.run("Glow", 94.0, number={"count": 50})
    folder.run("IWAE", 87.0, seed=1)
    told = table("--rows", "model", "--baseline", "VAE")
    assert "NICE: no difference to VAE: no run has a partner" in told
    assert "Glow: no difference to VAE: another protocol" in told
    assert "−2.00 (n = 1)" in line(told, "IWAE")
    assert "baseline=GAN: no row or column is called so; there are: Glow, IWAE" in refusal(
        "--rows", "model", "--baseline", "GAN"
    )
    assert "what the rows are has to be said too" in refusal("--columns", "model")


def test_students_distribution_is_scipys():
    from scipy import stats

    from zoo.runs.baseline import two_sided

    for freedom in range(1, 30):
        for t in (0.0, 0.3, 1.0, 4.5, 30.0):
            assert two_sided(-t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), abs=1e-12)


def test_published_numbers_tell_their_protocol(folder, table):
    said = {"paper": "MADE 2015", "protocol": "test, 10,000 images", "published": {"nats": 88.4}}
    folder.run("MADE", 88.0, config={"experiment": said})
    folder.run("NICE", 95.0)
    text = table()
    assert re.search(r"88\.00\* +88\.4\[1\] ", line(text, "made"))
    assert "[1] published: MADE 2015; test, 10,000 images" in text
    (row, _) = csv.DictReader(io.StringIO(table("--format", "csv")))
    assert row["published"] == "88.4"


def test_published_numbers_do_not_stand_beside_a_changed_recipe(folder, table):
    said = {"published": {"nats": 88.4}, "changed": ["batch_size"]}
    folder.run("MADE", 90.0, config={"experiment": said})
    assert "88.4" not in table()


def test_published_numbers_on_which_runs_disagree_are_left_out(folder, table):
    for seed, value in enumerate((88.4, 89.0)):
        folder.run("MADE", 88.0, seed=seed, config={"experiment": {"published": {"nats": value}}})
    assert "published" not in table()


def test_a_number_stands_beside_what_it_was_measured_for(folder, table):
    """One training, measured in two ways, each for a row of a paper; a third way is for none."""
    path = folder.run("Flow", 0.09, config={"experiment": {"published": {"nats": 0.12}}}) / "results.json"
    run = json.loads(path.read_text())
    (first,) = run["numbers"]
    ways = {"rk45": (0.09, 0.12), "euler": (5.0, 6.232), "heun": (0.2, None)}
    run["numbers"] = [
        first
        | {"value": ours, "protocol": {"method": "log_prob", "solver": solver}}
        | (
            {"published": {"value": theirs, "paper": "A", "protocol": solver, "tolerance": 1.0}}
            if theirs
            else {}
        )
        for solver, (ours, theirs) in ways.items()
    ]
    path.write_text(json.dumps(run))
    told = table("--rows", "protocol.solver")
    assert line(told, "rk45").split()[1:4] == ["=", "0.090", "0.12[2]"]
    assert line(told, "euler").split()[1:4] == ["=", "5.000", "6.232[1]"]
    assert line(told, "heun").split()[1:4] == ["=", "0.200", "–"]
    assert "[1] published: A; euler" in told
    assert re.search(r"= 0\.090 +0\.12\[1\] ", line(table(), "flow-digits"))


def test_what_is_published_on_val_does_not_stand_beside_a_number_on_test(folder, table):
    said = {
        "published": {"nats": 94.5},
        "protocol": "val, 10,000 images; the number for test stands beside it",
    }
    path = folder.run("MADE", 93.0, config={"experiment": said}) / "results.json"
    run = json.loads(path.read_text())
    run["numbers"].append(run["numbers"][0] | {"split": "val", "value": 94.4})
    path.write_text(json.dumps(run))
    assert "94.5" not in table().replace("94.50", "")
    assert re.search(r"= 94\.40 +94\.5\[1\] ", line(table("--split", "val"), "made"))


def test_an_older_result_has_its_published_value_in_its_config(folder, table):
    """It stands beside the one number that it can be about, and beside none of several."""
    said = {"published": {"nats": 94.5}, "paper": "A"}
    path = folder.run("MADE", 93.0, config={"experiment": said}) / "results.json"
    assert "94.5[1]" in table()
    run = json.loads(path.read_text())
    run["numbers"].append(
        run["numbers"][0] | {"value": 92.0, "protocol": {"method": "log_prob", "samples": 9}}
    )
    path.write_text(json.dumps(run))
    assert "94.5" not in table("--rows", "protocol.samples")
