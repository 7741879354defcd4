"""A run's folder may come from a stranger: what it stores is built from a short list of origins and never executed."""

import os
import shutil

import pytest
import torch
import yaml
from commands import run
from conftest import ROOT

from zoo.config import allowed, build
from zoo.config.build import targets
from zoo.training import checkpoint_files as files

# targets, and the arguments with which each would leave a file behind
HARMFUL = {
    "builtins.open": {"file": "{}", "mode": "w"},
    "pathlib.Path.write_text": {"self": {"_target_": "pathlib.Path", "_args_": ["{}"]}, "data": "x"},
    "pathlib.Path.touch": {"_args_": [{"_target_": "pathlib.Path", "_args_": ["{}"]}]},
    "shutil.copy": {"src": __file__, "dst": "{}"},
    "torch.save": {"obj": 1, "f": "{}"},
    "torch.load": {"f": "{}", "weights_only": False},
    "torch.hub.download_url_to_file": {"url": f"file://{__file__}", "dst": "{}"},
    "torch.utils.cpp_extension.load_inline": {"name": "x", "cpp_sources": "", "build_directory": "{}"},
    "os.system": {"command": "touch {}"},
    "subprocess.run": {"args": ["touch", "{}"]},
    "multiprocessing.Process": {"target": {"_target_": "os.system", "_partial_": True}, "args": ["touch {}"]},
    # functions of the house that are there for other purposes
    "zoo.training.checkpoint_files.write": {"content": {"a": 1}, "path": "{}"},
    "zoo.training.checkpoint_files.link": {"source": __file__, "path": "{}"},
    "zoo.data.files.download": {"urls": [f"file://{__file__}"], "path": "{}", "known": "", "needs": ""},
    "zoo.runs.folder.write": {"path": {"_target_": "pathlib.Path", "_args_": ["{}"]}, "text": "x"},
    "zoo.config.build.build": {"node": {"_target_": "builtins.open", "file": "{}", "mode": "w"}},
    "hydra.utils.instantiate": {"config": {"_target_": "builtins.open", "file": "{}", "mode": "w"}},
    "numpy.save": {"file": "{}", "arr": 1},
    "lightning.Fabric": {},
    "lightning.pytorch.utilities.parsing.save_hyperparameters": {"obj": "{}"},
    # what stands in an admitted module without being of it
    "zoo.training.checkpoint_files.os.system": {"command": "touch {}"},
    "zoo.training.checkpoint_files.torch.save": {"obj": 1, "f": "{}"},
    "zoo.data.files.urllib.request.urlretrieve": {"url": f"file://{__file__}", "filename": "{}"},
    "zoo.training.checkpoint_files.shutil.copyfile": {"src": __file__, "dst": "{}"},
    "torch.nn.init.torch.save": {"obj": 1, "f": "{}"},
}
PLACES = ["model", "model.encoder", "dataset.source"]


def filled(node, path):
    if isinstance(node, dict):
        return {key: filled(value, path) for key, value in node.items()}
    if isinstance(node, list):
        return [filled(value, path) for value in node]
    return node.replace("{}", str(path)) if isinstance(node, str) else node


def poisoned(folder, place, node):
    """Put a node into a run's stored config."""
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    *parents, last = place.split(".")
    inner = config
    for part in parents:
        inner = inner[part]
    inner[last] = node
    path.write_text(yaml.safe_dump(config))


def refused(done, target):
    lines = done.err.strip().splitlines()
    assert done.code == 1
    assert len(lines) == 1, done.err
    assert lines[0].startswith(f"error: the stored config names {target} ")
    assert "ZOO_ALLOW=" in lines[0]


@pytest.mark.parametrize("target", HARMFUL)
def test_a_stored_config_builds_nothing_that_writes_reads_or_runs(target, tmp_path):
    mark = tmp_path / "mark"
    node = {"_target_": target, **filled(HARMFUL[target], mark)}
    for inside in (node, {"_target_": "zoo.nn.MLP", "_partial_": True, "hidden": [node]}):
        with pytest.raises(ValueError, match="the stored config names"):
            build(inside, "model", stored=True)
    assert not mark.exists()


@pytest.mark.parametrize(
    "value",
    [
        "${oc.create:'{_target_: builtins.open, file: MARK, mode: w}'}",
        "${oc.decode:'{_target_: builtins.open, file: MARK, mode: w}'}",
        "${oc.env:HOME}",
        "${seed}",
    ],
)
def test_a_stored_config_has_values_only(value, tmp_path):
    mark = tmp_path / "mark"
    node = {"_target_": "torch.nn.Identity", "inner": [value.replace("MARK", str(mark))]}
    with pytest.raises(ValueError, match=r"interpolation at model\.inner\[0\]"):
        build(node, "model", stored=True)
    assert not mark.exists()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("command", "words"), [("evaluate", ["n=1"]), ("scripts/sample", ["n=1"])])
def test_a_strangers_run_is_refused_in_a_line_by_whatever_reads_it(command, words, place, copy, tmp_path):
    mark = tmp_path / "mark"
    poisoned(copy, place, {"_target_": "builtins.open", "file": str(mark), "mode": "w"})
    refused(run(command, f"run={copy}", *words), "builtins.open")
    assert not mark.exists()


@pytest.mark.parametrize("place", [*PLACES, "optimizer", "schedule", "trainer", "callbacks", "logger"])
def test_a_strangers_run_is_not_resumed(place, copy, tmp_path):
    mark = tmp_path / "mark"
    node = {"_target_": "builtins.open", "file": str(mark), "mode": "w", "_partial_": True}
    whole = {"max_steps": 30, "devices": 1, "accumulate_grad_batches": 1, "precision": "32-true"} | {
        "accelerator": "cpu",
        "val_check_interval": 10,
        "log_every_n_steps": 10,
        "enable_progress_bar": False,
    }
    node |= whole if place == "trainer" else {}
    poisoned(copy, place, {"one": node} if place in ("callbacks", "logger") else node)
    (copy / "results.json").unlink()
    identified(copy)
    refused(run("train", f"resume={copy}"), "builtins.open")
    assert not mark.exists()


def identified(folder):
    """Whoever forges a config forges its identity too."""
    import json

    from zoo.jobs.data import loaders
    from zoo.runs import identity

    config = yaml.safe_load((folder / "config.yaml").read_text())
    try:
        data = loaders(config, stored=True)
        data.setup("fit")
        data.has("test")
        whole = identity(config, data.fingerprints)
    except ValueError:  # it is the data that are forged
        return
    (folder / "identity.json").write_text(json.dumps({"identity": whole}))


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    ("command", "words"),
    [("evaluate", ["run={}", "n=1"]), ("scripts/sample", ["run={}", "n=1"]), ("train", ["resume={}"])],
    ids=["evaluate", "sample", "resume"],
)
def test_code_in_a_checkpoint_never_runs(command, words, copy, tmp_path):
    mark = tmp_path / "mark"
    for path in (copy / "checkpoints").iterdir():
        content = files.load(path)
        path.unlink()
        torch.save({**content, "extra": Bomb(mark)}, path)
    (copy / "results.json").unlink()
    done = run(command, *(word.format(copy) for word in words))
    assert done.code == 1
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert "is refused: it holds more than plain values" in done.err
    assert not mark.exists()


def test_a_start_from_a_strangers_weights_runs_no_code(copy, tmp_path):
    from commands import train

    mark = tmp_path / "mark"
    torch.save(
        {"state_dict": {}, "place": {"step": 1}, "extra": Bomb(mark)}, copy / "checkpoints" / "best.ckpt"
    )
    done = train(tmp_path / "new", f"init={copy}")
    assert done.code == 1
    assert "is refused" in done.err
    assert not mark.exists()


USERS = """
import torch
from zoo.models import VAE


class Mine(VAE):
    pass
"""


@pytest.fixture
def users(tmp_path, monkeypatch, copy):
    """A run whose model is of a package of the user's own."""
    package = tmp_path / "packages" / "mypackage"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(USERS)
    monkeypatch.syspath_prepend(package.parent)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    poisoned(copy, "model", {**config["model"], "_target_": "mypackage.Mine"})
    return copy


def test_a_package_of_the_users_own_is_refused_until_it_is_allowed(users, monkeypatch):
    words = ("evaluate", f"run={users}", "splits=[val]", "log_prob.samples=2", "n=0")
    refused(run(*words), "mypackage.Mine")
    assert run(*words, "allow=[mypackage]").code == 0
    assert run("scripts/sample", f"run={users}", "n=2", "allow=[mypackage]").code == 0
    refused(run("scripts/sample", f"run={users}", "n=2", "allow=[my]"), "mypackage.Mine")
    monkeypatch.setenv("ZOO_ALLOW", "other,mypackage")
    assert run(*words).code == 0


def test_load_takes_the_same_list(users):
    import zoo

    with pytest.raises(ValueError, match="mypackage"):
        zoo.load(users)
    assert type(zoo.load(users, allow=["mypackage"])).__name__ == "Mine"


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("zoo.models.VAE", True),
        ("torch.nn.GELU", True),
        ("torch.optim.AdamW", True),
        ("lightning.Trainer", True),
        ("torchvision.transforms.RandomCrop", True),
        ("lightning.pytorch.callbacks.EarlyStopping", True),
        ("zoo.training.schedules.cosine", True),
        ("zoo.training.loggers.WandB", True),
        ("zoo.data.tinyshakespeare", True),
        ("zoo.data.MNIST", True),
        ("zoo.data.mnist", False),
        ("zoo.models", False),
        ("zoo.models.Nothing", False),
        ("zoology.models.VAE", False),
        ("torch.nnx.GELU", False),
        ("lightning.TrainerX", False),
        ("lightning.Trainer.fit", False),
        ("", False),
    ],
)
def test_what_a_stored_config_may_name(target, told):
    assert allowed(target) is told


def test_an_allowed_name_is_a_package_not_a_beginning():
    assert allowed("mine.Model", ["mine"])
    assert not allowed("mines.Model", ["mine"])
    assert not allowed("mine", ["mine"])


# what is chosen by what is on disk: the choice is stored, not this
CHOSEN = ROOT / "configs/perceptual/auto.yaml"


@pytest.mark.parametrize(
    "path", sorted({*(ROOT / "configs").glob("*/*.yaml")} - {CHOSEN}), ids=lambda path: path.stem
)
def test_all_that_our_own_configs_name_may_be_stored(path):
    content = yaml.safe_load(path.read_text())
    assert all(allowed(node["_target_"]) for _, node in targets(content))


def test_the_users_own_command_line_may_name_anything(tmp_path):
    path = build({"_target_": "pathlib.Path", "_args_": [str(tmp_path)]}, "model")
    assert path == tmp_path


def test_a_moved_run_of_a_friend_is_used_without_a_question(copy, tmp_path):
    moved = shutil.move(copy, tmp_path / "theirs")
    assert run("evaluate", f"run={moved}", "splits=[val]", "log_prob.samples=2", "n=0").code == 0
