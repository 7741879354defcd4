"""Every file of configs/: it composes without torch, says what it is, and what it describes keeps its contract."""

import inspect
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from conftest import ROOT, composed
from hydra.utils import get_object
from omegaconf import OmegaConf

from zoo.config import schema
from zoo.config.build import build, targets
from zoo.config.catalogue import bringing, options
from zoo.config.command import PLACES

CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
CHOICES = [path for path in FILES if path.parent != CONFIGS and CONFIGS / "hydra" not in path.parents]
MODELS = options("model")
# what a user must give, here something that is not there: composing reads no data
ASKED = {
    "match=params": ["match.target=1e6"],
    "match=flops": ["match.target=1e6"],
    "dataset=own_images": ["dataset.shape=[1,8,8]"],
    "dataset=own_text": ["dataset.source.root=nowhere.txt"],
    "dataset=reflow": [
        "dataset.shape=[2]",
        *(f"dataset.{fact}=null" for fact in ("kind", "levels", "classes", "unit", "source.base")),
    ],
}
# arguments that the house gives itself, beside those that are positional and required
GIVEN = {
    "mixer": {"causal", "position", "layer", "depth"},
    "mlp": {"layer", "depth"},
    "position": {"heads", "depth"},
    "tokens": {"model"},
    "logger": {"name", "config", "group", "job_type"},
}
# small spaces of every kind: shape, levels, classes
SPACES = {
    "images": ([1, 8, 8], 17, 3),
    "binary": ([1, 8, 8], 2, None),
    "colours": ([3, 8, 8], 256, 3),
    "tokens": ([12], 7, None),
    "reals": ([4, 8, 8], None, 3),
}
CODED = ("images", "binary", "colours")  # those that a first stage is made for
# what makes a model small enough for a test
SMALL = (
    {model: ["model.dim=16", "model.depth=2"] for model in ("transformer", "mamba", "s4", "retnet", "rwkv")}
    | {
        model: ["backbone.dim=8", "backbone.mult=[1,2]", "backbone.depth=1", "backbone.attention=[]"]
        for model in ("rectified_flow", "ddpm", "edm", "ot_cfm")
    }
    | {
        "sd3": ["backbone.dim=16", "backbone.depth=2", "backbone.heads=2", "condition.dim=16"],
        "cnf": ["backbone.width=16"],
        "code_prior": ["model.prior.dim=16", "model.prior.depth=2"],
        "code_pixelcnn": ["model.prior.dim=8", "model.prior.depth=2"],
        "vqvae": ["encoder.widths=[4,8]", "quantizer.levels=16"],
        "vqgan": [
            "encoder.widths=[4,8]",
            "model.critic.width=4",
            "quantizer.levels=16",
            "perceptual=none",
        ],
        "latent_diffusion": ["backbone.dim=8", "backbone.depth=1"],
        "kl_autoencoder": [
            "encoder.widths=[4,8]",
            "model.critic.width=4",
            "perceptual=none",
        ],
        "image_classifier": ["model.widths=[4,8]"],
        "f_vae": ["model.latent=4", "model.noise_network.hidden=4", "model.network.hidden=[16]"],
        "nice": ["model.hidden=[16]"],
        "realnvp": ["model.hidden=4", "model.depth=1"],
        "glow": ["model.hidden=8", "model.steps=2", "model.scales=2"],
    }
)


def name(path):
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def words(path):
    """The command line that chooses a file."""
    group, _, choice = name(path).partition("/")
    chosen = [f"{PLACES.get(group, group)}={choice}"]
    while by := bringing(group)[:1]:  # a choice of what brings it along, and of what brings that
        chosen[:0] = by
        group = by[0].partition("=")[0]
    if any("dataset=" in word and yaml_of(f"dataset/{word[8:]}")["kind"] == "text" for word in chosen):
        chosen.insert(0, "model=transformer")
    return chosen + [word for key in chosen for word in ASKED.get(key, [])]


def yaml_of(path):
    return yaml.safe_load((CONFIGS / f"{path}.yaml").read_text()) or {}


@pytest.fixture
def no_data(monkeypatch):
    """Facts that are read off data are replaced by a number: a config must compose without its data."""
    from zoo.config import resolvers

    monkeypatch.setattr(resolvers, "vocabulary_size", lambda source: 65)
    yield
    monkeypatch.undo()
    resolvers.register()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_opens_with_a_sentence(path):
    first, second, *_ = path.read_text().splitlines()
    sentence = second if first.startswith("# @package") else first
    assert sentence.startswith("# ")
    assert len(sentence.split()) >= 3


@pytest.mark.parametrize("path", CHOICES, ids=name)
def test_every_choice_composes_and_is_what_its_file_says(path, no_data):
    config = OmegaConf.to_container(composed("train", *words(path)), resolve=True)
    group, _, choice = name(path).partition("/")
    own = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    if path.read_text().startswith("# @package _global_"):
        node = config
    else:
        node = config[PLACES.get(group, group).rpartition("@")[2]]
    for key, value in own.items():
        if key != "defaults" and not isinstance(value, dict | list) and "${" not in str(value):
            assert node[key] == value or value == "???", f"{choice}: {key}"
    if group == "dataset":
        assert config["dataset"]["name"] == choice
        assert config["model"]["shape"] == config["dataset"]["shape"]
        assert config["model"]["levels"] == config["dataset"]["levels"]


@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_the_other_commands_compose(command):
    config = OmegaConf.to_container(composed(command, "run=runs/one", "n=3", "++sample.temperature=0.9"))
    assert (config["run"], config["n"], config["sample"]) == ("runs/one", 3, {"temperature": 0.9})


def test_showing_any_config_imports_no_torch():
    lines = [words(path) for path in CHOICES]
    code = """
import contextlib, io, json, sys
from train import main
for words in json.load(sys.stdin):
    sys.argv = ["train.py", *words, "--cfg", "job"]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        main()
    assert "batch_size: " in shown.getvalue(), words
    if found := {"torch", "lightning", "wandb", "datasets", "numpy"} & set(sys.modules):
        sys.exit(f"{words} imports {found}")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, input=json.dumps(lines), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def constructors():
    """Every mapping with `_target_` in any file, once: file, place, node."""
    seen = set()
    for path in CHOICES:
        group = name(path).partition("/")[0]
        if group in ("debug", "evaluation", "experiment", "sweep"):
            continue
        place = PLACES.get(group, group).rpartition("@")[2]
        config = OmegaConf.to_container(composed("train", *words(path))[place], resolve=False)
        for place, node in targets(config, group):
            if (node["_target_"], *node) not in seen:
                seen.add((node["_target_"], *node))
                yield pytest.param(group, place, node, id=f"{name(path)}:{place}")


@pytest.mark.parametrize(("group", "place", "node"), list(constructors()))
def test_keys_are_the_arguments_of_the_constructor(group, place, node):
    target = get_object(node["_target_"])
    parameters = inspect.signature(target).parameters
    keys = {key for key in node if not key.startswith("_")}
    if group == "optimizer":
        keys -= {"groups"}  # parameter groups, which zoo.training.optimizers makes
    if node["_target_"] == "lightning.Trainer":
        keys -= {"timeout"}  # how long ranks wait for each other, which zoo.training.devices reads
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return  # torch's DistributedDataParallel judges the rest
    assert keys <= set(parameters), f"{node['_target_']} has no {keys - set(parameters)}"
    if node["_target_"].startswith("zoo."):
        house = {p.name for p in parameters.values() if p.default is p.empty and node.get("_partial_")}
        missing = set(parameters) - keys - house - GIVEN.get(group, set())
        assert not missing, f"{place} leaves out {missing}"


@pytest.mark.parametrize("objective", options("objective"))
@pytest.mark.parametrize("model", bringing("objective"))
def test_a_network_takes_either_objective(model, objective):
    """gpt and roformer, and all between: the same network that sees what comes before, or all."""
    facts = ["dataset.shape=[12]", "dataset.levels=7", "dataset.classes=null"]
    small = SMALL.get(model.partition("=")[2], [])
    config = composed("train", model, f"objective@model={objective}", *facts, *small)
    built = build(OmegaConf.to_container(config, resolve=True)["model"], "model")
    import torch

    x = torch.randint(7, (2, 12))
    other = torch.cat([x[:, :11], (x[:, 11:] + 1) % 7], 1)
    assert type(built).__name__ == {"causal": "Autoregressive", "masked": "Masked"}[objective]
    built.eval()
    seen = (built(x) - built(other))[:, :11].abs().max() > 1e-7
    assert bool(seen) == (objective == "masked")


class Subject(NamedTuple):
    """A model on a small space, and a batch of such data."""

    name: str
    space: str
    model: object
    x: object
    y: object


def facts_of(space):
    shape, levels, classes = SPACES[space]
    return [
        f"dataset.shape={shape}",
        f"dataset.levels={json.dumps(levels)}",
        f"dataset.classes={json.dumps(classes)}",
    ]


@cache
def first_stage(space):
    """The folder of a run with a small VQ-VAE on a small space, as what models of two stages begin with."""
    from zoo.runs import Run
    from zoo.training import checkpoint_files

    small = ["encoder.widths=[4,8]", "model.dim=4", "quantizer.levels=8"]
    config = OmegaConf.to_container(
        composed("train", "model=vqvae", *facts_of(space), *small)["model"], resolve=True
    )
    run = Run(Path(os.environ["ZOO_CACHE_DIR"]) / "first_stages" / space)
    run.create({"model": config}, "0" * 64, {})
    weights = {"state_dict": build(config, "model").state_dict(), "place": {"step": 1}}
    checkpoint_files.write(weights, run.checkpoints / "step-00000001.ckpt")
    return run.folder


def made(model, space):
    """A model on a small space, None where it cannot be made for it."""
    import torch

    from zoo.types import Space, Unfit

    shape, levels, classes = SPACES[space]
    words = [*facts_of(space), *SMALL.get(model, [])]
    if "zoo.pretrained" in (CONFIGS / f"model/{model}.yaml").read_text():
        words.append(f"model.codec.run={first_stage(space if space in CODED else CODED[0])}")
    config = composed("train", f"model={model}", *words)
    node = OmegaConf.to_container(config, resolve=True)["model"]
    if not classes and str((node.get("condition") or {}).get("_target_")).endswith("ClassCondition"):
        return None  # a model of labels, and data that have none
    torch.manual_seed(0)
    try:
        built = build(node, "model")
    except Unfit as error:
        if error.fits(Space(tuple(shape), levels)):
            raise AssertionError(f"{model} refuses what it says to fit: {space}") from error
        return None
    x = torch.randint(levels, (6, *shape)) if levels else torch.randn(6, *shape)
    if levels and levels <= 256 and len(shape) == 3:
        x = x.to(torch.uint8)
    y = torch.randint(classes, (6,)) if classes else None
    return Subject(model, space, prepared(built, x, y), x, y)


def prepared(model, x, y):
    from zoo.types import Prepared, can

    if can(model, Prepared):
        model.prepare([{"x": x} if y is None else {"x": x, "y": y}])
    return model


@pytest.fixture(params=MODELS, scope="module")
def subjects(request):
    """A model on each of the small spaces that it can be made for."""
    found = [fit for space in SPACES if (fit := made(request.param, space))]
    assert found, "no space of this test fits: add one"
    return found


def test_the_loss_is_a_finite_scalar_that_follows_from_the_seed(subjects):
    import torch

    for subject in subjects:
        model, x, y = subject.model, subject.x, subject.y
        terms = []
        for _ in range(2):
            torch.manual_seed(3)
            terms.append(model.loss(x, y))
        assert terms[0]["loss"].dim() == 0
        for term, value in terms[0].items():
            assert value.dim() == 0
            assert value.isfinite(), term
            assert torch.equal(value, terms[1][term]), term


def test_the_loss_reaches_every_parameter_and_changes_none(subjects):
    import torch

    for subject in subjects:
        model, x, y = subject.model, subject.x, subject.y
        model.train()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        model.zero_grad()
        model.loss(x, y)["loss"].backward()
        for part, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, part
                assert parameter.grad.isfinite().all(), part
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_samples_are_of_the_datas_kind(subjects):
    from zoo.types import Sampler, can

    for subject in subjects:
        model, y = subject.model, subject.y
        if not can(model, Sampler):
            continue
        shape, levels, _ = SPACES[subject.space]
        x = model.eval().sample(3, None if y is None else y[:3])
        assert x.shape == (3, *shape)
        assert x.is_floating_point() == (levels is None)
        if levels:
            assert 0 <= int(x.min()) <= int(x.max()) < levels  # a byte is never below 256 for torch
        assert not x.requires_grad


def test_log_prob_is_one_number_an_example_of_a_known_kind(subjects):
    from zoo.types import Density, can

    for subject in subjects:
        model, x, y = subject.model, subject.x, subject.y
        if not can(model, Density):
            continue
        log_p = model.eval().log_prob(x, y)
        assert log_p.shape == (len(x),)
        assert log_p.isfinite().all()
        assert model.kind in ("exact", "lower bound", "estimate")


def test_a_state_dict_is_all_that_a_model_is(subjects):
    import torch

    for subject in subjects:
        model, x, y = subject.model, subject.x, subject.y
        other = made(subject.name, subject.space).model
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1.0)
        other.load_state_dict(model.state_dict())
        losses = []
        for one in (model.eval(), other.eval()):
            torch.manual_seed(3)
            losses.append(one.loss(x, y)["loss"])
        assert torch.equal(*losses)


def test_a_models_methods_have_the_contracts_signatures(subjects):
    from zoo.types import Density, Sampler, Trainable, can

    for subject in subjects:
        model = subject.model
        assert can(model, Trainable)
        for contract, method, first in (
            (Trainable, "loss", "x"),
            (Density, "log_prob", "x"),
            (Sampler, "sample", "n"),
        ):
            if not can(model, contract):
                continue
            one, label, *more = inspect.signature(getattr(model, method)).parameters.values()
            assert (one.name, label.name, label.default) == (first, "y", None)
            assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in more), method


def test_a_model_can_what_it_has_methods_for(subjects):
    from zoo import types

    for subject in subjects:
        model = subject.model
        contracts = {
            types.Trainable: ("loss",),
            types.Sampler: ("sample",),
            types.Density: ("log_prob", "kind"),
            types.Codec: ("encode", "decode", "latent"),
            types.Prepared: ("prepare",),
            types.Scheduled: ("at",),
            types.Measured: ("statistics", "summarize"),
        }
        for contract, names in contracts.items():
            has = all(hasattr(model, attribute) for attribute in names)
            if callable(getattr(model, "can", None)):
                assert has or not types.can(model, contract), contract
            else:
                assert types.can(model, contract) == has, contract


@pytest.mark.parametrize("name", schema.SCHEMAS)
def test_every_key_of_a_command_has_a_type(name):
    keys = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()).keys() - {"defaults", "hydra"}
    assert keys <= set(schema.SCHEMAS[name].__dataclass_fields__)
    if name == "train":
        own = yaml.safe_load((CONFIGS / "evaluation" / "default.yaml").read_text()).keys()
        assert own <= set(schema.Measured.__dataclass_fields__)
