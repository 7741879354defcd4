"""Every error of a user ends with a sentence: what was given, where, and what would do instead."""

import errno
import json
import urllib.error

import numpy as np
import pytest
from commands import TINY, TRANSFORMER, VAE, process, run, train


def told(done, *words):
    """It failed, in a few lines without a traceback, the first of which has all the words."""
    lines = done.err.strip().splitlines()
    assert done.code == 1, done
    assert "Traceback" not in done.out + done.err
    assert 1 <= len(lines) <= 5, done.err
    assert lines[0].startswith("error: ")
    for word in words:
        assert str(word) in lines[0], done.err
    return done.err


REFUSED = {
    "an unknown choice": (["model=vaee"], ["model=vaee", "did you mean vae?"]),
    "an unknown logger": (["logger=wand"], ["logger=wand", "did you mean wandb?"]),
    "a misspelt key": (["trainer.max_stepz=3"], ["trainer.max_stepz", "did you mean trainer.max_steps?"]),
    "a misspelt top-level key": (["sede=3"], ["sede", "did you mean seed?"]),
    "a key that a model has not": (["+model.depht=3"], ["model.depht", "VAE", "latent"]),
    "a word without a value": (["seed"], ["seed"]),
    "an unclosed bracket": (["model.latent=[1"], ["model.latent=[1"]),
    "a word for the seed": (["seed=abc"], ["seed=abc", "Integer"]),
    "a word for a size": (["model.latent=abc"], ["model.latent='abc'", "int"]),
    "an encoder of vectors for a field": (
        ["model=vqvae", "encoder=mlp"],
        ["field of vectors", "encoder=residual"],
    ),
    "a word for a list": (["encoder.hidden=abc"], ["encoder.hidden='abc'", "Sequence"]),
    "a word for a rate": (["optimizer.lr=abc"], ["optimizer.lr='abc'", "float"]),
    "a word for the steps": (["trainer.max_steps=abc"], ["trainer.max_steps=abc"]),
    "a fraction of an example": (["batch_size=1.5"], ["batch_size=1.5", "Integer"]),
    "a missing value": (["dataset=own_images"], ["dataset.shape", "must be given"]),
    "an image model on text": (["dataset=pydoc"], ["shape=[256]", "levels="]),
    "a choice that a model has not": (["mixer=softmax"], ["mixer", "model=transformer"]),
    "heads that do not divide": ([*TRANSFORMER, "mixer.heads=3"], ["dim=8", "heads=3", "try heads=4"]),
    "levels that the data have not": (["dataset.levels=2"], ["digits", "levels 2", "16"]),
    "a shape that the data have not": (["dataset.shape=[1,9,9]"], ["digits", "(1, 9, 9)", "[1, 8, 8]"]),
    "a size that the data have not": (["dataset.sizes.train=5"], ["digits", "5", "1257"]),
    "classes that the data have not": (["dataset.classes=3"], ["digits", "3 classes", "9"]),
    "no GPU": (["trainer=gpu"], ["trainer.accelerator=gpu", "trainer=cpu"]),
    "data on no GPU": (["data_device=cuda"], ["data_device=cuda", "data_device=cpu"]),
    "half precision on the CPU": (["trainer.precision=16-mixed"], ["trainer.precision=16-mixed", "bf16"]),
    "an unknown precision": (["trainer.precision=15"], ["trainer.precision=15"]),
    "an unknown accelerator": (["trainer.accelerator=abacus"], ["accelerator='abacus'"]),
    "no steps": (["trainer.max_steps=0"], ["trainer.max_steps=0"]),
    "no micro-batches": (["trainer.accumulate_grad_batches=0"], ["trainer.accumulate_grad_batches=0"]),
    "no interval": (["trainer.val_check_interval=0"], ["trainer.val_check_interval=0"]),
    "an empty batch": (["batch_size=0"], ["batch_size=0"]),
    "a negative batch": (["batch_size=-3"], ["batch_size=-3"]),
    "a batch larger than the set": (["batch_size=5000"], ["batch_size=5000", "1257"]),
    "a batch that cannot be cut": (
        ["trainer.accumulate_grad_batches=3"],
        ["batch_size=64", "try batch_size=66"],
    ),
    "negative workers": (["num_workers=-1"], ["num_workers=-1"]),
    "an average that forgets nothing": (["ema=1.5"], ["ema=1.5"]),
    "an unknown checkpointing": (["gradient_checkpointing=half"], ["gradient_checkpointing=half", "sqrt"]),
    "an unknown option of log_prob": (["evaluate.log_prob.sample=9"], ["log_prob.sample", "it has: samples"]),
    "an unknown option of sample": (["evaluate.sample.heat=2"], ["sample.heat", "it has: temperature"]),
    "a word for draws": (["evaluate.log_prob.samples=abc"], ["log_prob.samples='abc'", "int"]),
    "fewer than no samples": (["evaluate.n=-1"], ["n=-1"]),
    "an unknown split": (["evaluate.splits=[tset]"], ["splits=tset", "test, val, train"]),
    "unknown weights": (["evaluate.weights=worst"], ["weights=worst", "best or last"]),
    "fewer than no examples": (["evaluate.examples=-5"], ["examples=-5", "1 or more"]),
    "a word for examples": (["evaluate.examples=some"], ["evaluate.examples=some", "Integer"]),
    "a word for samples": (["evaluate.n=some"], ["evaluate.n=some", "Integer"]),
    "no list of splits": (["evaluate.splits=null"], ["evaluate.splits=None"]),
    "no options": (["evaluate.log_prob=null"], ["evaluate.log_prob=None"]),
    "no measurement": (["evaluate=null"], ["evaluate=None"]),
    "one sample to measure": (
        ["experiment=rectified_flow/moons", "model=rectified_flow", "evaluate.samples=1"],
        ["samples=1", "2 or more"],
    ),
    "a group that is none": (["optimizer.groups=[abc]"], ["optimizer.groups: abc has no match"]),
    "less than no threads": (["threads=-1"], ["threads=-1", "1 or more"]),
    "what no config decides": (
        ["+trainer.num_sanity_val_steps=2"],
        ["trainer.num_sanity_val_steps", "itself"],
    ),
    "callbacks in another place": (["+trainer.callbacks=[]"], ["trainer.callbacks", "callbacks="]),
    "no checkpoint kept": (["keep=0"], ["keep=0", "1 or more"]),
    "no step between checkpoints": (["checkpoint_every=0"], ["checkpoint_every=0", "1 or more"]),
    "a length that is none": (["evaluate.lengths=[1,half]"], ["lengths=[1, 'half']", "at least 1"]),
    "lengths of pictures": (["evaluate.lengths=[1,2]"], ["VAE does not tell the nats"]),
    "the speed of pictures": ([*TRANSFORMER, "evaluate.speed=true"], ["shape (1, 8, 8) are no sequences"]),
    "a start from nowhere": (["init=nowhere"], ["nowhere", "no run"]),
    "a resume from nowhere": (["resume=nowhere"], ["nowhere", "no run"]),
    "no text": (
        ["model=transformer", "dataset=own_text", "dataset.source.root=nowhere.txt"],
        ["nowhere.txt"],
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_training_refuses(fault, tmp_path):
    words, said = REFUSED[fault]
    told(train(tmp_path, *words), *said)
    trained = [path for path in tmp_path.glob("*/metrics.csv") if path.read_text().count("\n") > 1]
    assert not trained, "it must be refused before a step is taken"


def test_a_value_that_only_the_model_can_judge_leaves_a_run_that_can_be_measured_again(tmp_path):
    told(train(tmp_path, "evaluate.log_prob.samples=0"), "samples=0")
    done = train(tmp_path, "evaluate.log_prob.samples=1")
    assert done.code == 0, done.err
    assert "goes on from step-00000004.ckpt" in done.out


def test_choices_that_would_fit_are_listed_by_the_names_one_types(tmp_path):
    said = told(
        train(tmp_path, "model=transformer", "mixer=lstm", "position=rope"), "position=Rotary", "LSTM"
    )
    (line,) = [line for line in said.splitlines() if line.startswith("choices that fit: ")]
    assert "position=none, position=recurrent" in line
    assert "rope" not in line


def test_datasets_that_would_fit_are_listed(tmp_path):
    said = told(train(tmp_path, "dataset=pydoc"))
    (line,) = [line for line in said.splitlines() if line.startswith("datasets that fit: ")]
    assert {"digits", "mnist", "shapes"} <= set(line.partition(": ")[2].split(", "))
    assert "text8" not in line


EVALUATED = {
    "no run": ("evaluate", [], ["run=...", "must be given"]),
    "no run to sample from": ("scripts/sample", [], ["run=...", "must be given"]),
    "a misspelt key": ("evaluate", ["run={}", "splitz=[val]"], ["splitz", "did you mean splits?"]),
    "an unknown option": (
        "evaluate",
        ["run={}", "log_prob.sample=9"],
        ["log_prob.sample", "it has: samples"],
    ),
    "an unknown option of sample": ("evaluate", ["run={}", "sample.heat=2"], ["sample.heat", "temperature"]),
    "an option to sample by": ("scripts/sample", ["run={}", "sample.heat=2"], ["sample.heat", "temperature"]),
    "no draws": ("evaluate", ["run={}", "log_prob.samples=0"], ["samples=0"]),
    "a word for draws": ("evaluate", ["run={}", "log_prob.samples=abc"], ["log_prob.samples='abc'", "int"]),
    "fewer than no samples": ("evaluate", ["run={}", "n=-1"], ["n=-1"]),
    "no samples": ("scripts/sample", ["run={}", "n=0"], ["n=0"]),
    "less than no samples": ("scripts/sample", ["run={}", "n=-1"], ["n=-1"]),
    "an unknown split": ("evaluate", ["run={}", "splits=[tset]"], ["splits=tset", "test, val, train"]),
    "an empty batch": ("evaluate", ["run={}", "batch_size=0"], ["batch_size=0"]),
    "a negative batch": ("evaluate", ["run={}", "batch_size=-1"], ["batch_size=-1"]),
    "unknown weights": ("evaluate", ["run={}", "weights=worst"], ["weights=worst", "best or last"]),
    "no CUDA": ("evaluate", ["run={}", "device=cuda"], ["device=cuda", "device=cpu"]),
    "an unknown device": ("evaluate", ["run={}", "device=abacus"], ["device=abacus"]),
    "a folder that is none": ("evaluate", ["run=nowhere"], ["nowhere is no run's folder"]),
    "a folder of runs": ("evaluate", ["run={}/.."], ["is no run's folder"]),
    "a prompt for a picture": ("scripts/sample", ["run={}", "prompt=hi"], ["prompt='hi'", "digits"]),
    "a label for a model without": ("scripts/sample", ["run={}", "y=3"], ["y=3"]),
    "no examples": ("evaluate", ["run={}", "examples=0"], ["examples=0", "1 or more"]),
    "less than no threads": ("evaluate", ["run={}", "threads=-1"], ["threads=-1", "1 or more"]),
    "a word for completions": (
        "scripts/sample",
        ["run={}", "given=top", "completions=some"],
        ["completions=some", "Integer"],
    ),
    "two ways to draw": (
        "scripts/sample",
        ["run={}", "along=2", "interpolate=3"],
        ["interpolate=3 and along=2", "takes one"],
    ),
    "an option where nothing is drawn": (
        "scripts/sample",
        ["run={}", "interpolate=3", "sample.temperature=0.5"],
        ["interpolate=3", "no sample.temperature"],
    ),
    "another budget": ("train", ["resume={}", "train_flops=1e9"], ["train_flops", "another run"]),
    "another cost": (
        "train",
        ["resume={}", "match=params", "match.target=1000", "match.width=model.latent"],
        ["match", "another run"],
    ),
    "a plan for what has begun": ("train", ["resume={}", "dry_run=true"], ["has begun already"]),
    "another experiment": ("train", ["resume={}", "model.latent=5"], ["model.latent=5", "init="]),
    "another batch": ("train", ["resume={}", "batch_size=32"], ["batch_size=32", "64"]),
    "another model": ("train", ["resume={}", "model=transformer"], ["model", "Autoregressive", "VAE"]),
}


@pytest.mark.parametrize("fault", EVALUATED)
def test_what_is_done_with_a_run_is_refused(fault, finished):
    program, words, said = EVALUATED[fault]
    before = (finished / "results.json").read_text()
    told(run(program, *(word.format(finished) for word in words)), *said)
    assert (finished / "results.json").read_text() == before


def test_a_label_that_is_none_of_the_classes_is_refused(tmp_path):
    assert train(tmp_path, *TRANSFORMER, "model.conditional=true", "evaluate.n=0").code == 0
    (folder,) = tmp_path.glob("transformer-*")
    told(run("scripts/sample", f"run={folder}", "n=2", "y=10"), "y=10", "9")


def test_comparing_nothing_is_refused_in_a_sentence(tmp_path, finished):
    nothing = run("scripts/compare", tmp_path)
    unknown = run("scripts/compare", finished, "--rows", "modell")
    assert (nothing.code, unknown.code) == (1, 1)
    assert "no run" in nothing.err
    assert "did you mean model?" in unknown.err


def test_data_that_are_nowhere_are_told_with_where_they_were_looked_for(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    place = f"data_dir={tmp_path / 'empty'}"
    told(train(tmp_path, "dataset=mnist", place), tmp_path / "empty", "no network", "data_dir=")
    told(train(tmp_path, *TRANSFORMER, "dataset=text8", place), tmp_path / "empty", "no network")


def test_a_damaged_data_file_is_named(tmp_path):
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\x1f\x8b\x08\x00 cut")
    told(train(tmp_path, "dataset=mnist", f"data_dir={tmp_path}"), file)


OWN = ["dataset=own_images", "dataset.shape=[1,8,8]", "dataset.levels=17", "dataset.classes=10"]
X = np.zeros((200, 1, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"x": X, "y": np.arange(200) % 12}, ["label 11", "classes=10"]),
        ({"x": X, "y": np.arange(199) % 10}, ["200 images", "199 labels"]),
        ({"x": X + 17, "y": np.arange(200) % 10}, ["17", "levels=17"]),
        (None, ["cannot be read"]),
    ],
    ids=["a label too high", "a label too few", "a level too high", "no archive"],
)
def test_own_images_that_do_not_fit_are_refused(tmp_path, content, said):
    file = tmp_path / "own.npz"
    file.write_bytes(b"PK\x03\x04 and no more") if content is None else np.savez(file, **content)
    told(train(tmp_path / "runs", *OWN, f"dataset.source.root={file}"), file, *said)


def unfinished(folder):
    """Make a finished run one that was killed before its end."""
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "running"}))


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("content", ["{", "[1]", ""])
@pytest.mark.parametrize("name", ["results.json", "identity.json", "config.yaml"])
def test_a_damaged_file_of_a_run_is_named(copy, name, content):
    (copy / name).write_text(content)
    word = "resume" if name == "identity.json" else "run"
    program = "train" if word == "resume" else "evaluate"
    told(run(program, f"{word}={copy}"), copy / name, "is damaged")


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(copy):
    unfinished(copy)
    cut(copy / "checkpoints" / "step-00000020.ckpt")
    done = run("train", f"resume={copy}")
    assert done.code == 0
    assert "step-00000020.ckpt: it is cut short or damaged" in done.err
    assert "goes on from step-00000010.ckpt" in done.out
    assert json.loads((copy / "results.json").read_text())["status"] == "finished"


def test_a_run_whose_checkpoints_are_all_damaged_cannot_be_measured(copy):
    for path in (copy / "checkpoints").iterdir():
        cut(path)
    for weights in ("best", "last"):
        told(run("evaluate", f"run={copy}", f"weights={weights}"), copy / "checkpoints")


def test_a_run_whose_checkpoints_are_all_damaged_begins_anew_and_says_so(copy):
    unfinished(copy)
    for path in (copy / "checkpoints").iterdir():
        cut(path)
    done = run("train", f"resume={copy}")
    assert done.code == 0
    assert done.err.count("skipped") == 3, done.err
    assert "goes on" not in done.out
    steps = [line.split(",")[0] for line in (copy / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == sorted(steps, key=int), "metrics of both trainings in one file"


def test_a_folder_that_cannot_be_written_is_refused_with_its_name(tmp_path):
    (tmp_path / "file").write_text("no folder")
    told(train(tmp_path / "file"), "cannot write to", tmp_path / "file", "free")


def test_a_full_disk_is_told_and_the_run_says_that_it_failed(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zoo.training.checkpoint_files.torch.save", full)
    told(train(tmp_path), "the disk is full", tmp_path)
    (folder,) = tmp_path.glob("vae-*")
    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "failed"
    assert "the disk is full" in results["reason"]


def test_a_loss_that_is_not_finite_is_told_with_step_name_rate_and_last_checkpoint(tmp_path):
    done = train(tmp_path, "optimizer.lr=1e30", "checkpoint_every=1")
    told(done, "not finite at step 2", "learning rate 1e+30", "step-00000001.ckpt", "nats")
    (folder,) = tmp_path.glob("vae-*")
    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "failed"
    assert "not finite at step 2" in results["reason"]
    assert done.err.strip() in f"error: {results['reason'].partition(': ')[2]}"


def test_debugging_shows_the_traceback(tmp_path):
    done = train(tmp_path, "batch_size=0", "debug=trace")
    assert done.code == 1
    assert "Traceback" in done.err
    assert "batches.py" in done.err
    assert done.err.strip().splitlines()[-1].startswith("error: batch_size=0")


def test_an_unforeseen_error_says_where_it_was_and_how_to_see_all_of_it(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("something")

    monkeypatch.setattr("zoo.models.vae.VAE.loss", broken)
    said = told(train(tmp_path), "RuntimeError: something", "test_errors.py")
    assert "debug=trace" in said


def test_the_next_command_is_not_harmed_by_an_error(tmp_path):
    told(train(tmp_path, "model=vaee"))
    assert train(tmp_path).code == 0


@pytest.mark.parametrize(
    ("program", "words", "said"),
    [
        ("train", ["model=vaee"], ["model=vaee", "did you mean vae?"]),
        ("evaluate", [], ["run=...", "must be given"]),
        ("train", ["optimizer.lr=1e30", *TINY, *VAE], ["not finite at step 2"]),
    ],
    ids=["a choice", "nothing given", "a training"],
)
def test_a_process_ends_as_the_call_does(program, words, said, tmp_path):
    words = [*words, f"runs={tmp_path}"] if program == "train" else words
    told(process(program, *words), *said)
