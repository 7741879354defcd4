"""torch.compile: what is trained with it is what is trained without, by whatever else a training is made of."""

import pytest
import tiny_run
import torch
from commands import TRANSFORMER, VAE, only, run, train
from conftest import composed
from omegaconf import OmegaConf
from test_devices import PAIR
from tiny_run import difference
from torch._dynamo.utils import counters

from zoo import chance
from zoo.config import build
from zoo.nn.checkpointing import checkpoint_blocks
from zoo.training import checkpoint_files as files
from zoo.training.compiled import Compiled, compiled

COMPILE = ("callbacks=compile", "callbacks.compile.backend=aot_eager")
CPU = torch.device("cpu")
CODES = ("model=vqvae", "encoder.widths=[4,8]", "model.dim=4", "quantizer.levels=8")
MODELS = {
    "vae": (*VAE, "ema=0.9"),
    "transformer": (*TRANSFORMER, "mixer.dropout=0.1", "gradient_checkpointing=full"),
    "codebook": (*CODES, "quantizer=ema", "quantizer.codebook.revive=0.5"),
    "temperature": (*CODES, "quantizer=gumbel", "trainer.accumulate_grad_batches=2"),
}
# whose loss depends on the step: on its number, on which mask's turn it is, on a temperature
STEPS = {"codebook": MODELS["codebook"], "masks": ("model=made", "model.hidden=[8]", "model.masks=12")}
STEPS["temperature"] = (*CODES, "quantizer=gumbel")


@pytest.fixture(autouse=True)
def anew():
    """Nothing that was compiled before is at hand, and what is compiled is counted."""
    torch._dynamo.reset()
    counters.clear()


def newest(folder):
    return files.load(files.newest(folder / "checkpoints")[0])


def assert_same_training(one, two, rtol=1e-6, atol=1e-9):
    """Weights, averages, buffers and moments, by the same names."""
    a, b = newest(one), newest(two)
    for part in ("state_dict", "raw", "optimizer_states"):
        torch.testing.assert_close(b.get(part), a.get(part), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["vae", "transformer", "codebook"])
def test_a_compiled_training_is_the_same(tmp_path, name):
    """In float64, where rounding does not grow into other codes."""
    words = (*MODELS[name], "trainer.precision=64-true")
    for folder, more in (("plain", ()), ("compiled", COMPILE)):
        done = train(tmp_path / folder, *words, *more)
        assert done.code == 0, done.err
    plain, other = only(tmp_path / "plain"), only(tmp_path / "compiled")
    assert_same_training(plain, other)
    assert plain.name != other.name, "it is part of the identity"


@pytest.mark.parametrize("name", STEPS)
def test_a_step_has_no_program_of_its_own(name):
    model, x = small(*STEPS[name])
    loss, graphs = compiled(model.loss, CPU, mode="default", backend="eager"), []
    for step in range(12):
        model.at(step)
        loss(x)["loss"].backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert (
        graphs[1] == graphs[-1] <= 8
    )  # the second step has other numbers, and a program for all that follow


def test_a_compiled_run_goes_on_exactly_and_is_the_start_of_one_that_is_not(tmp_path):
    assert train(tmp_path, *MODELS["vae"], *COMPILE).code == 0
    folder = only(tmp_path)
    whole = newest(folder)
    files.newest(folder / "checkpoints")[0].unlink()
    (folder / "results.json").unlink()
    done = run("train", f"resume={folder}")
    assert done.code == 0, done.err
    assert "goes on from step-00000002.ckpt" in done.out
    assert not difference(whole, newest(folder))
    done = train(tmp_path / "next", *MODELS["vae"], f"init={folder}")
    assert done.code == 0, done.err


@pytest.mark.slow  # real processes: autograd does not compile in a fork
@pytest.mark.parametrize(
    ("name", "trainer", "precision", "near"),
    [
        ("temperature", "ddp", "64-true", {}),
        ("vae", "fsdp", "32-true", {"rtol": 1e-3, "atol": 1e-5}),  # Lightning's shards know no float64
    ],
)
def test_several_devices_compile_what_one_compiles(tmp_path, name, trainer, precision, near):
    """With the noise of the whole batch, and between the calls that gather shards."""
    words = (*MODELS[name], *COMPILE, f"trainer.precision={precision}")
    for folder, more in (("one", ()), ("two", (*PAIR, f"trainer={trainer}"))):
        done = train(tmp_path / folder, *words, *more)
        assert done.code == 0, done.err
    assert_same_training(only(tmp_path / "one"), only(tmp_path / "two"), **near)


def small(*words):
    """A model of a command line's words, for images of 8 by 8, and such images."""
    facts = ("dataset.shape=[1,8,8]", "dataset.levels=17", "dataset.classes=null")
    config = OmegaConf.to_container(composed("train", *facts, *words), resolve=True)
    torch.manual_seed(0)
    return build(config["model"], "model"), torch.randint(17, (4, 1, 8, 8))


@pytest.mark.parametrize("quantizer", ["vq", "ema", "rotation", "fsq"])
def test_gradients_pass_a_compiled_quantizer(quantizer):
    """A program that returns a view of what it got, as codes are of entries, would drop their gradient."""
    model, x = small(*CODES[:3], f"quantizer={quantizer}")
    model.double().at(0)
    found = []
    for loss in (model.loss, compiled(model.loss, CPU, mode="default", backend="aot_eager")):
        model.zero_grad()
        loss(x)["loss"].backward()
        found.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("policy", ["sqrt", "selective"])
def test_blocks_are_recomputed_in_a_compiled_loss(policy):
    model, x = small(
        "model=transformer", "model.dim=8", "model.depth=2", "mixer.heads=2", "model.dropout=0.1"
    )
    found = []
    for way in ("none", policy):
        checkpoint_blocks(model, way)
        loss = model.loss if way == "none" else compiled(model.loss, CPU, mode="default", backend="aot_eager")
        chance.at("once")
        model.zero_grad()
        loss(x)["loss"].backward()
        found.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(
    "word", ["callbacks.compile.mode=fast", "callbacks.compile.backend=gcc", "callbacks.compile.backend=3"]
)
def test_what_torch_does_not_take_is_refused(tmp_path, word):
    done = train(tmp_path, *VAE, "callbacks=compile", word)
    assert done.code == 1
    assert word in done.err.splitlines()[0]


def test_a_machine_without_a_compiler_is_told_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/nowhere/g++"))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    done = train(tmp_path, *VAE, "callbacks=compile")
    assert done.code == 1
    line = done.err.splitlines()[-1]
    assert line.startswith("error: torch.compile does not work on this machine: ")
    assert "install a C++ compiler" in line
    assert not (only(tmp_path) / "metrics.csv").exists()


def test_the_model_is_left_as_it_was(tmp_path):
    """A copy of it would call a compiled loss of the original."""
    trainer = tiny_run.train(tmp_path / "checkpoints", steps=2, callbacks=(Compiled(backend="eager"),))
    assert "loss" not in vars(trainer.lightning_module.model)
    assert counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "transformer"])
def test_fused_kernels_train_the_same(tmp_path, name):
    """Minutes on busy cores: a C++ compiler works."""
    words = (*MODELS[name], "trainer.precision=64-true")
    for folder, more in (("plain", ()), ("compiled", ("callbacks=compile",))):
        done = train(tmp_path / folder, *words, *more)
        assert done.code == 0, done.err
    assert_same_training(only(tmp_path / "plain"), only(tmp_path / "compiled"))
