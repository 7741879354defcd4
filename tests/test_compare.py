"""Tables of comparison: what they average, rank and leave out, how they are written, and that they need no torch."""

import csv
import io
import json
import re
import statistics
import subprocess
import sys

import commands
import pytest
from comparisons import PAIRS, line
from conftest import ROOT


def test_rows_are_means_and_unbiased_deviations_over_seeds(folder, table):
    values = [88.0, 90.0, 89.5]
    for seed, value in enumerate(values):
        folder.run("VAE", value, seed=seed)
    folder.run("NICE", 95.0)
    told = table()
    assert f"= {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} (3)*" in line(
        told, "vae-digits"
    )
    assert "= 95.00 (1) " in line(told, "nice-digits")
    assert re.search(r"2000 +123.5 k +61 s$", line(told, "vae-digits"))
    assert "test nats/example ↓" in told
    assert "mean ± unbiased standard deviation (runs) over seed" in told


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("nats", "VAE"),
        ("perplexity", "VAE"),
        ("accuracy", "NICE"),
        ("fid", "VAE"),
        ("coverage", "NICE"),
        ("density_zoo", "NICE"),
        ("codebook_use", "NICE"),
        ("codebook_perplexity", "NICE"),
    ],
)
def test_the_best_is_best_in_the_right_direction(folder, table, name, best):
    folder.run("VAE", 0.25, number={"name": name, "unit": ""})
    folder.run("NICE", 0.75, number={"name": name, "unit": ""})
    starred = [line.split("-")[0] for line in table().splitlines() if "*" in line]
    assert starred == [best.lower()]


def test_rows_are_named_by_config_keys_and_blocks_by_their_class(folder, table):
    for base in (100, 200):
        folder.run("T", 88.0 + base, config={"position": {"_target_": "zoo.nn.Rotary", "base": base}})
    folder.run("T", 80.0, config={"position": {"_target_": "zoo.nn.ALiBi", "base": None}})
    text = table("--rows", "position")
    assert line(text, "ALiBi ")
    assert "188.00" in line(text, "Rotary position.base=100")
    assert "288.00" in line(text, "Rotary position.base=200")
    assert [line.split()[0] for line in table("--rows", "position.base").splitlines()[2:5]] == [
        "100",
        "200",
        "None",
    ]


def test_blocks_are_called_by_the_words_that_chose_them(folder, table):
    for word, levels in (("vq", 1024), ("ema", 1024), ("ema", 64)):
        block = {"_target_": "zoo.nn.VectorQuantizer", "mean": word == "ema", "levels": levels}
        folder.run(
            "VQVAE", levels, config={"quantizer": block}, choices={"quantizer": word, "seed": "no block"}
        )
    text = table("--rows", "quantizer")
    assert [line.split("  ")[0] for line in text.splitlines()[2:5]] == [
        "ema quantizer.levels=1024",
        "ema quantizer.levels=64",
        "vq",
    ]
    assert "1024.0" in line(table("--rows", "quantizer", "--where", "quantizer=vq"), "vq")


def test_by_default_a_row_never_averages_different_configs(folder, table):
    folder.run("VAE", 88.0, config={"optimizer": {"lr": 0.1}})
    folder.run("VAE", 90.0, config={"optimizer": {"lr": 0.2}})
    folder.run("VAE", 91.0, config={"optimizer": {"lr": 0.2}, "seed": 1})
    text = table()
    assert "88.00 (1)" in line(text, "vae-digits optimizer.lr=0.1")
    assert "90.50 ± 0.71 (2)" in line(text, "vae-digits optimizer.lr=0.2")
    assert "averages" not in text
    text = table("--rows", "model")
    assert "VAE averages runs that differ in optimizer.lr (0.1, 0.2)" in text
    assert "averages" not in table("--rows", "model", "--over", "seed,optimizer.lr")


def test_what_does_not_define_a_run_makes_no_rows(folder, table):
    folder.run("VAE", 88.0, config={"trainer": {"devices": 1, "max_steps": 5}, "num_workers": 0})
    folder.run("VAE", 90.0, config={"trainer": {"devices": 2, "max_steps": 5}, "num_workers": 4}, seed=1)
    text = table()
    assert "89.00 ± 1.41 (2)" in line(text, "vae-digits ")
    assert "averages" not in text


def test_missing_numbers_are_dashes(folder, table):
    folder.run("VAE", 88.0)
    folder.run("NICE", 3.5, number={"name": "bits_per_dim", "unit": "bits/dim"})
    folder.run("Glow", None)
    text = table()
    assert re.search(r" – +(=) 88\.00 ", line(text, "vae"))
    assert re.search(r" = 3\.500 +– ", line(text, "nice"))
    assert re.search(r" – +– ", line(text, "glow"))


def test_a_diverged_run_is_shown_and_never_best(folder, table):
    folder.run("VAE", float("nan"))
    folder.run("NICE", 95.0)
    folder.run("Glow", 96.0)
    text = table()
    assert "= nan " in line(text, "vae")
    assert "95.00*" in text


def test_unfinished_runs_are_listed_with_their_reason(folder, table):
    folder.run("VAE", 88.0)
    folder.run("NICE", None, status="failed", reason="the loss is nan at step 12")
    new = folder.path / "new"
    new.mkdir()
    (new / "identity.json").write_text(json.dumps({"identity": "f" * 64}))
    text = table()
    assert line(text, "not in the table: nice-digits").endswith(", failed: the loss is nan at step 12")
    assert line(text, "not in the table: new").endswith(", unfinished: no results yet")


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"status": "finished", "numbers": [{"name": "nats"}]}', "\x00"]
)
def test_a_corrupt_result_is_named_and_the_others_are_shown(folder, table, content):
    folder.run("VAE", 88.0)
    folder.run("NICE", 95.0, at="broken").joinpath("results.json").write_text(content)
    text = table()
    assert "88.00" in text
    assert line(text, f"left out {folder.path / 'broken'}: its results cannot be read")


def test_a_run_found_twice_counts_once(folder, table):
    first = folder.run("VAE", 88.0)
    folder.run("VAE", 90.0, seed=1)
    folder.run("VAE", 88.0, at="copies/of/mine")
    text = table()
    assert "89.00 ± 1.41 (2)" in text
    assert "the same run as" in text
    done = commands.run("scripts/compare", folder.path / "vae-1", first, first)
    assert done.code == 0, done.err
    assert "the same run" not in done.out


def test_a_moved_run_is_the_same_run(folder, table):
    before = folder.run("VAE", 88.0)
    told = table()
    before.rename(folder.path / "elsewhere")
    assert table() == told


def test_what_lies_inside_a_run_and_links_in_a_circle_are_no_runs(folder, table):
    outer = folder.run("Latent", 88.0, at="deep/outer")
    folder.run("VQVAE", 95.0, at="deep/outer/codec")
    (folder.path / "deep" / "circle").symlink_to(folder.path)
    text = table()
    assert "88.00" in text
    assert "95.00" not in text
    assert outer.is_dir()


def test_numbers_of_another_version_are_told(folder, table):
    folder.run("VAE", 88.0)
    folder.run("NICE", 95.0, version="0.2.0+abc")
    told = (
        "numbers of different versions of the code: 0.1.0: vae-digits digits; 0.2.0+abc: nice-digits digits"
    )
    assert told in table()


def test_metric_split_and_columns_choose_what_is_shown(folder, table):
    path = folder.run("VAE", 88.0, config={"optimizer": {"lr": 0.1}}) / "results.json"
    run = json.loads(path.read_text())
    run["numbers"].append(run["numbers"][0] | {"name": "bits_per_dim", "unit": "bits/dim", "value": 3.25})
    run["numbers"].append(run["numbers"][0] | {"split": "val", "value": 87.0})
    path.write_text(json.dumps(run))
    text = table("--metric", "bits_per_dim", "--facts", "optimizer.lr")
    assert text.splitlines()[0].split("  ")[-2:] == ["test bits/dim ↓", "optimizer.lr"]
    assert line(text, "vae").split()[-3:] == ["=", "3.250", "0.1"]
    assert "= 87.00" in table("--split", "val")
    both = table("--metric", "nats,bits_per_dim")
    assert "88.00" in both
    assert "3.250" in both


def test_of_single_runs_the_standard_error_is_told_and_of_several_the_deviation(folder, table):
    folder.run("VAE", 88.0, number={"stderr": 0.25})
    folder.run("NICE", 95.0)
    text = table()
    assert "88.00 ± 0.25" in line(text, "vae")
    assert "±" not in line(text, "nice")
    assert "± standard error over the examples of one run" in text
    folder.run("VAE", 90.0, seed=1, number={"stderr": 0.25})
    text = table()
    assert "89.00 ± 1.41 (2)" in line(text, "vae")
    assert "standard error" not in text


def test_csv_has_raw_numbers(folder, table):
    values = [88.0, 90.0, 89.1234567]
    for seed, value in enumerate(values):
        folder.run("VAE", value, seed=seed, number={"kind": "lower bound"})
    (row,) = csv.DictReader(io.StringIO(table("--format", "csv")))
    assert (float(row["mean"]), float(row["sd"])) == (statistics.fmean(values), statistics.stdev(values))
    assert row["n"] == "3"
    assert row["name"] == "vae-digits"
    assert row["unit"] == "nats/example"
    assert json.loads(row["protocol"])["kind"] == "lower bound"
    assert float(row["time"]) == pytest.approx(61.2)


def test_markdown_and_latex_are_well_formed(folder, table):
    folder.run("VAE", 88.0, name="my_vae|50%")
    folder.run("VAE", 90.0, seed=1, name="my_vae|50%")
    folder.run("NICE", 95.0)
    folder.run("Glow", 94.0, number={"split": "val"})
    lines = table("--format", "markdown").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    ours = rows[3]
    assert r"my\_vae\|50%" in ours
    assert "**89.00 ± 1.41 (2)**" in ours
    assert "94.00 (1)<sup>a</sup>" in rows[2]
    assert "<sup>a</sup> split val, not test" in lines
    text = table("--format", "latex")
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines() if line.endswith(r"\\")} == {5}
    assert r"\begin{tabular}{llrrrr}" in text
    ours = rows[3]
    assert r"my\_vae|50\%" in text
    assert r"\textbf{89.00 $\pm$ 1.41 (2)}" in text
    assert r"$^{a}$ split val, not test" in text
    assert text.count("{") == text.count("}")
    assert body.isascii()


def test_unknown_names_are_refused_with_what_there_is(folder, refusal, tmp_path):
    folder.run("VAE", 88.0, config={"optimizer": {"lr": 0.1}})
    assert "no run has the config key optimizer.lrr; did you mean optimizer or optimizer.lr?" in refusal(
        "--rows", "optimizer.lrr"
    )
    assert "no run has the config key sead; did you mean seed" in refusal("--over", "sead")
    assert "no run has the config key stepz" in refusal("--facts", "stepz")
    assert "no run has the metric natz; did you mean nats? there are: nats" in refusal("--metric", "natz")
    assert "no run has numbers of the split tset; there are: test" in refusal("--split", "tset")
    assert "there is no file" in refusal("--published", str(tmp_path / "no.csv"))
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    assert "is no CSV with columns row,metric,value" in refusal("--published", str(tmp_path / "bad.csv"))


def test_only_runs_that_are_asked_for_are_shown(grid, table, refusal):
    text = table("--rows", "position,mixer", "--where", "position=ALiBi", "--where", "mixer=Attention,Mamba")
    assert text.count("ALiBi") == 2
    assert "Rotary" not in text
    assert "no run has position=Alibi; there are: ALiBi, Rotary" in refusal("--where", "position=Alibi")
    assert "no run has the config key positon; did you mean position?" in refusal("--where", "positon=ALiBi")
    assert "it takes key=label" in refusal("--where", "position")


def test_a_grid_has_a_row_and_a_column_for_each_value(grid, table):
    told = table("--rows", "mixer", "--columns", "position")
    assert told.splitlines()[0].split() == ["mixer", "ALiBi", "Rotary"]
    for mixer in ("Attention", "Mamba"):
        for position in ("ALiBi", "Rotary"):
            i = list(PAIRS).index((position, mixer))
            values = [PAIRS[position, mixer] + 0.3 * seed + 0.01 * i * seed**2 for seed in range(3)]
            told_so = f"= {statistics.mean(values):.3f} ± {statistics.stdev(values):.3f} (3)"
            assert told_so in line(told, mixer)
    assert "test nats/example ↓, a column for each position" in told
    assert line(told, "Mamba").count("*") == 2
    assert "averages" not in told


def test_json_has_every_number_unrounded_and_no_nan(folder, table):
    folder.run("VAE", 88.123456789)
    folder.run("NICE", float("nan"))
    told = json.loads(table("--format", "json"), parse_constant=lambda word: pytest.fail(word))
    means = {row["name"]: row["numbers"][0]["mean"] for row in told["rows"]}
    assert means == {"vae-digits": 88.123456789, "nice-digits": "nan"}
    assert all(len(row["runs"]) == 1 for row in told["rows"])
    assert told["rows"][0]["numbers"][0]["protocol"]["dataset"] == "digits"


def test_a_grid_in_latex_has_one_heading_over_its_columns(grid, table):
    text = table("--rows", "mixer", "--columns", "position", "--format", "latex")
    assert r"\multicolumn{2}{c}{test nats/example $\downarrow$} \\" in text
    assert r"\cmidrule(lr){2-3}" in text
    assert "mixer & ALiBi & Rotary \\\\" in text
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert {line.count("&") for line in body.splitlines() if line.endswith(r"\\")} == {2}


def test_a_thousand_runs_are_compared_in_three_seconds(folder, table):
    import time

    layers = {str(i): {"dim": i, "bias": True, "init": {"std": 0.02}} for i in range(40)}
    for i in range(1000):
        folder.run(
            "T",
            3.0 + i,
            seed=i % 5,
            config={"model": {"_target_": "zoo.T", "n": i // 5, **layers}},
            at=f"r{i}",
        )
    begun = time.process_time()
    assert "(5)" in table("--rows", "model.n", "--baseline", "0")
    assert time.process_time() - begun < 3


def test_folders_without_a_finished_run_are_refused(folder, refusal):
    assert "no run below" in refusal()
    folder.run("VAE", None, status="failed", reason="out of memory")
    assert "none of 1 runs is finished: not in the table: vae-digits" in refusal()
    done = commands.run("scripts/compare", "/no/such/folder")
    assert done.code == 1
    assert "there is no folder /no/such/folder" in done.err


def test_tables_need_no_torch(folder):
    folder.run("VAE", 88.0)
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'lightning', 'wandb', 'numpy', 'hydra'} & set(sys.modules)))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "scripts" / "compare.py"), str(folder.path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "88.00" in told.stdout
    assert told.stdout.splitlines()[-1] == "[]"
