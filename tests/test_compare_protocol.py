"""Numbers of different protocols in one table: marked, neither ranked nor averaged, told apart by protocol.<option>."""

import json
import re

import pytest
from comparisons import line


@pytest.mark.parametrize(
    ("number", "told"),
    [
        ({"split": "val"}, "split val, not test"),
        ({"kind": "lower bound"}, "kind lower bound, not exact"),
        ({"count": 50}, "count 50, not 100"),
        ({"weights": {"which": "best", "averaged": True}}, "averaged True, not False"),
        ({"protocol": {"method": "log_prob", "samples": 100}}, "samples 100"),
        ({"protocol": {"method": "log_prob", "binarization": "dynamic"}}, "binarization dynamic"),
    ],
)
def test_another_protocol_is_marked_and_not_ranked(folder, table, number, told):
    folder.run("NICE", 95.0)
    folder.run("Glow", 94.0)
    folder.run("VAE", 88.0, number=number)
    text = table()
    assert f"[a] {told}\n" in text
    assert "88.00[a]" in line(text, "vae-digits")
    assert "94.00*" in line(text, "glow-digits")
    assert "the best is marked among numbers of one protocol only" in text


def test_exact_likelihoods_are_ranked_however_they_are_written(folder, table):
    folder.run("PixelCNN", 93.0, number={"protocol": {"method": "log_prob", "order": "row, column"}})
    folder.run(
        "NADE", 94.0, number={"protocol": {"method": "log_prob", "order": "random, seed 0", "since": 0}}
    )
    folder.run("Flow", 95.0)
    text = table()
    assert "93.00*" in line(text, "pixelcnn")
    assert "[a]" not in text


def test_what_depends_on_the_order_is_not_ranked(folder, table):
    told = {"name": "accuracy", "unit": "", "protocol": {"method": "statistics", "order": "row, column"}}
    folder.run("PixelCNN", 0.9, number=told)
    folder.run("NADE", 0.8, number=told | {"protocol": {"method": "statistics", "order": "random, seed 0"}})
    text = table("--metric", "accuracy")
    assert "[a] order " in text
    assert "*" not in text


def test_a_likelihood_of_a_part_is_not_ranked_beside_that_of_the_whole(folder, table):
    folder.run("GPT", 93.0, number={"protocol": {"method": "log_prob", "since": 0}})
    folder.run("NADE", 94.0)
    folder.run("Mamba", 90.0, number={"protocol": {"method": "log_prob", "since": 32}})
    text = table()
    assert "[a] since 32" in text
    assert "93.00*" in line(text, "gpt")


def test_data_of_another_content_are_marked(folder, table):
    folder.run("NICE", 95.0, data={"test": "1" * 64})
    folder.run("VAE", 88.0, data={"test": "2" * 64})
    text = table()
    assert "[a] data 2222" in text or "[a] data 1111" in text
    assert "*" not in text


def test_datasets_are_ranked_apart_and_need_no_letter_where_the_row_names_them(folder, table):
    for name, shift in (("digits", 0), ("mnist", 100)):
        folder.run("VAE", 88.0 + shift, config={"dataset": {"name": name}}, number={"count": 100 + shift})
        folder.run("NICE", 95.0 + shift, config={"dataset": {"name": name}}, number={"count": 100 + shift})
    text = table()
    assert "88.00*" in text
    assert "188.00*" in text
    assert "[a]" not in text


def test_datasets_are_marked_where_the_row_does_not_name_them(folder, table):
    folder.run("VAE", 88.0)
    for model in ("NICE", "Glow"):
        folder.run(model, 95.0, config={"dataset": {"name": "mnist"}}, number={"count": 200})
    text = table("--rows", "model")
    assert "88.00[a]" in line(text, "VAE")
    assert "[a] dataset digits, not mnist; count 100, not 200" in text


def test_signs_tell_bounds_from_exact_numbers(folder, table):
    for model, kind in (("VAE", "lower bound"), ("NICE", "exact"), ("Flow", "estimate")):
        folder.run(model, 88.0, number={"kind": kind})
    text = table()
    assert "≤ 88.00" in line(text, "vae")
    assert "= 88.00" in line(text, "nice")
    assert "≈ 88.00" in line(text, "flow")


def test_a_run_measured_twice_gives_what_the_others_have_too(folder, table):
    few, many = ({"protocol": {"samples": k}} for k in (1, 5000))
    run = json.loads((folder.run("VAE", 99.0, number=few) / "results.json").read_text())
    run["numbers"].append(run["numbers"][0] | many | {"value": 88.0})
    (folder.path / "vae-0" / "results.json").write_text(json.dumps(run))
    folder.run("IWAE", 87.0, number=many)
    text = table()
    assert "88.00" in line(text, "vae")
    assert "87.00*" in line(text, "iwae")
    assert "[a]" not in text


def test_seeds_of_different_protocols_are_not_averaged(folder, table):
    for seed, split in enumerate(("test", "test", "val")):
        folder.run("VAE", 88.0 + seed, seed=seed, number={"split": split})
    text = table()
    assert "88.50 ± 0.71 (2)" in line(text, "vae-digits  ")
    assert "vae-digits digits leaves out 1 of its runs: their nats has another protocol" in text


def test_a_grid_marks_a_cell_of_another_protocol(grid, table):
    config = {"mixer": {"_target_": "zoo.nn.RWKV"}, "position": {"_target_": "zoo.nn.ALiBi"}}
    grid.run("T", 0.5, config=config, number={"protocol": {"method": "log_prob", "samples": 7}})
    told = table("--rows", "mixer", "--columns", "position")
    assert re.search(r"= 0\.500 \(1\)\[a\] +–$", line(told, "RWKV"))
    assert "[a] samples 7" in told


@pytest.fixture
def measured(folder):
    """Two runs, each measured by two solvers with 5, 10 and 20 steps: 100 / steps of Euler's, a tenth of Heun's."""
    for model, worse in (("Flow", 0), ("Diffusion", 1)):
        run = folder.run(model, 0.0, number={"name": "fid_zoo", "unit": ""}) / "results.json"
        told = json.loads(run.read_text())
        told["numbers"] = [
            told["numbers"][0]
            | {
                "value": worse + part / steps,
                "protocol": {"method": "samples", "solver": solver, "steps": steps, "nfe": cost * steps},
            }
            for solver, part, cost in (("euler", 100, 1), ("heun", 10, 2))
            for steps in (5, 10, 20)
        ]
        run.write_text(json.dumps(told))
    return folder


def test_what_is_left_out_by_its_protocol_is_told_with_what_to_type(measured, table):
    told = table("--rows", "name")
    assert line(told, "flow-digits ").split()[1] == "20.00*"
    sentence = line(told, "10 more of fid_zoo")
    assert sentence.startswith("10 more of fid_zoo, by other protocols, are left out; ")
    words = sentence.partition("; ")[2].removesuffix(" shows them").split()
    assert words == ["--rows", "name,protocol.solver,protocol.steps"]
    told = table(*words)
    assert len(re.findall("^(?:flow|diffusion)-digits ", told, re.M)) == 12
    assert "left out" not in told


def test_ways_to_measure_make_a_full_grid(measured, table):
    told = table("--metric", "fid_zoo", "--rows", "name,protocol.solver", "--columns", "protocol.steps")
    assert told.splitlines()[0].split() == ["name", "protocol.solver", "5", "10", "20"]
    assert line(told, "flow-digits       euler").split()[2:] == ["20.00*", "10.00*", "5.00*"]
    assert line(told, "diffusion-digits  heun").split()[2:] == ["3.00", "2.00", "1.50"]
    assert "a column for each protocol.steps" in told
    for word in ("[a]", "left out", "averages"):
        assert word not in told


def test_a_grid_marks_what_its_labels_do_not_tell(measured, table):
    path = measured.run("Coarse", 9.0, number={"name": "fid_zoo", "unit": "", "count": 50})
    protocol = {"method": "samples", "solver": "euler", "steps": 1, "nfe": 1}
    told = json.loads((path / "results.json").read_text())
    told["numbers"][0]["protocol"] = protocol
    (path / "results.json").write_text(json.dumps(told))
    told = table("--rows", "name,protocol.solver", "--columns", "protocol.steps")
    assert "9.00[a]" in line(told, "coarse-digits")
    assert "[a] count 50, not 100\n" in told
    assert told.count("[a]") == 2


def test_what_a_measurement_took_need_not_agree(folder, table):
    """An adaptive solver takes as many steps as each model needs: seeds are averaged and models ranked all the same."""
    for model, value, nfe in (("Flow", 0.5, 92), ("OT", 0.25, 32)):
        for seed in range(2):
            told = {"method": "samples", "solver": "rk45", "nfe": nfe + seed}
            folder.run(model, value, seed=seed, number={"protocol": told})
    told = table("--rows", "model", "--baseline", "Flow")
    assert re.search(r"0\.250 ± 0\.000 \(2\)\* +−0\.250 ", line(told, "OT"))
    assert "leaves out" not in told
    assert "[a]" not in told


def test_a_grid_by_evaluations_has_a_place_for_each(measured, table):
    told = table("--rows", "protocol.solver", "--columns", "protocol.nfe", "--over", "seed,name,model")
    assert told.splitlines()[0].split() == ["protocol.solver", "5", "10", "20", "40"]
    assert re.search(r" 20\.50 ± 0\.71 \(2\) +10\.50 .* +5\.50 .* –$", line(told, "euler"))
    assert re.search(r"^heun +– +2\.50 ± .* 1\.50 ± .* 1\.00 ± ", line(told, "heun"))


def test_what_was_not_measured_by_an_option_has_a_dash_for_it(measured, table, refusal):
    measured.run("VAE", 3.0, number={"name": "fid_zoo", "unit": ""})
    measured.run("NICE", 95.0)
    told = table("--rows", "model", "--columns", "protocol.solver", "--metric", "fid_zoo")
    assert told.splitlines()[0].split() == ["model", "euler", "heun", "–"]
    assert line(told, "VAE").split()[1:] == ["–", "–", "3.00[a]"]
    assert "[a] method log_prob, not samples; no steps, not 5\n" in told
    assert line(told, "not in the table: nice-digits").endswith(", it has no fid_zoo")
    assert "no number was measured with stepz in its protocol; did you mean protocol.steps?" in refusal(
        "--rows", "model", "--columns", "protocol.stepz", "--metric", "fid_zoo"
    )


def test_a_way_to_measure_may_be_a_baseline_only_of_its_own_protocol(measured, table):
    told = table("--rows", "name", "--columns", "protocol.solver,protocol.steps", "--baseline", "flow-digits")
    assert "+1.00 (n = 1)" in line(told, "diffusion-digits")
    told = table("--rows", "name,protocol.solver", "--columns", "protocol.steps", "--baseline", "heun")
    assert "diffusion-digits euler 5: no difference to heun: another protocol" in told


def test_a_page_may_have_ways_to_measure_as_rows(measured, table):
    words = ("--rows", "name,protocol.solver", "--columns", "protocol.steps", "--format", "html")
    told = table(*words, "--metric", "fid_zoo", "--plot", "fid_zoo:protocol.nfe")
    assert "<h1>Fid zoo of 2 runs</h1>" in told
    assert "Fid zoo by nfe" in told
