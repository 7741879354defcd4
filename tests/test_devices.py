"""Several devices: they train what one trains, and end as one ends. Here they are processes of this machine's CPU."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from commands import TINY, TRANSFORMER, VAE, only, process, run
from conftest import ROOT, composed
from omegaconf import OmegaConf
from tiny_run import ended, forked
from torch import nn
from torch.utils.checkpoint import checkpoint

from zoo import chance
from zoo.jobs import ranks
from zoo.jobs.fit import refuse
from zoo.models import Autoregressive
from zoo.nn import Attention
from zoo.training import checkpoint_files as files
from zoo.training import devices
from zoo.training.batches import Batches, Once
from zoo.training.learner import Learner
from zoo.training.sharding import shard

PAIR = ("trainer=ddp", "trainer.accelerator=cpu")


# what is drawn


def draws(rows):
    """All that may be drawn for a batch of so many rows, the batch at dimension 0."""
    x, pixels = torch.zeros(rows, 3, 4), torch.zeros(rows, 3, 4, 4).to(memory_format=torch.channels_last)
    return [
        torch.randn_like(x),
        torch.rand(rows),
        torch.randint(8, (rows,)),
        torch.randint(2, 5, size=(rows, 3)),
        torch.randint_like(x, 9),
        torch.randn(11, rows, 3).movedim(1, 0),
        torch.rand_like(pixels),
        torch.rand(rows, 40, dtype=torch.float64),
        torch.empty(rows, 2).normal_(1, 2),
        torch.randint(255, (rows, 7), dtype=torch.uint8),
        torch.empty(rows).bernoulli_(0.3),
        torch.randn_like(pixels.transpose(1, 2)),
        torch.empty(rows * 5, 2).exponential_().unflatten(0, (rows, 5)),
    ]


@pytest.mark.parametrize("world", [2, 3])
def test_shares_of_a_batch_draw_what_one_process_draws(world):
    with chance.dealt(("place", 1), rows=[12]):
        whole = draws(12)
    shares = []
    for rank in range(world):
        with chance.dealt(("place", 1), rows=[12], rank=rank, world=world):
            shares.append(draws(12 // world))
    for drawn, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.stack(parts, 1).flatten(0, 1), drawn)
    assert torch.randn is chance.MAKERS["randn"]
    assert "normal_" not in vars(torch.Tensor)


def test_a_rest_that_joined_a_batch_draws_what_it_draws_alone():
    rests = []
    for place, rows in ((7, 4), (8, 1)):
        with chance.dealt(("val", place), rows=[rows]):
            rests.append(torch.randn(rows, 3))
    with chance.dealt(("val", 7), ("val", 8), rows=[4, 1], rank=0, world=2):
        assert torch.equal(torch.randn(3, 3), torch.cat(rests)[0::2])


def test_what_is_not_of_the_batch_differs_between_ranks_and_from_the_noise():
    """Dropout, and shapes without the batch: no two processes shall draw the same."""
    found = []
    for rank in range(2):
        with chance.dealt(("place",), rows=[8], rank=rank, world=2):
            noise = torch.rand(4, 100)
            found.append((torch.rand(3, 7), nn.functional.dropout(torch.ones(4, 100)), noise))
    (a, b, noise), (c, d, _) = found
    assert not torch.equal(a, c)
    assert not torch.equal(b, d)
    for dropped in (b, d):
        assert abs(torch.corrcoef(torch.stack([dropped.flatten(), noise.flatten()]))[0, 1]) < 0.2


def test_a_block_that_draws_and_is_computed_again_is_refused():
    x = torch.ones(4, 2, requires_grad=True)
    with chance.dealt(("place",), rows=[8], rank=0, world=2):
        y = checkpoint(lambda x: x * torch.randn_like(x), x, use_reentrant=False)
        with pytest.raises(RuntimeError, match="draw them in loss"):
            y.sum().backward()


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (3, 1), (2, 2), (1, 3)])
def test_a_micro_batch_of_all_ranks_is_that_of_one(world, accumulate):
    def batches(world, rank):
        return list(Batches(50, 24, seed=3, accumulate=accumulate, world=world, rank=rank))

    shares = [batches(world, rank) for rank in range(world)]
    for (place, whole), *parts in zip(batches(1, 0), *shares, strict=True):
        assert torch.equal(torch.stack([indices for _, indices in parts], 1).flatten(), whole)
        assert all((part.places, part.rows) == (place.places, place.rows) for part, _ in parts)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 101])
@pytest.mark.parametrize("world", [2, 4])
def test_a_validation_keeps_the_places_of_one_process(n, world):
    """Each example has the place and the row there that it has in one process's batches of 8."""

    def placed(place, indices):
        where = [(at, row) for at, rows in zip(place.places, place.rows) for row in range(rows)]
        return dict(zip(indices.tolist(), where[place.rank :: place.world], strict=True))

    one = {}
    for place, indices in Once(n, 8, seed=0, split="val"):
        one |= placed(place, indices)
    several = {}
    for rank in range(world if n >= world else 0):
        for place, indices in Once(n, 8 // world, seed=0, split="val", world=world, rank=rank):
            several |= placed(place, indices)
    assert several == one or n < world


# what is refused


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["batch_size=7"], "try batch_size=8"),
        (
            ["trainer.devices=3", "trainer.accumulate_grad_batches=2", "batch_size=8"],
            "3 devices x 2 accumulated",
        ),
        (["trainer.devices=0"], "trainer.devices=0: a whole number"),
        (["trainer.num_nodes=2"], "torchrun or srun must start"),
        (["trainer=fsdp", "optimizer=sgd"], "optimizer.fused=false"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(words, told):
    config = OmegaConf.to_container(composed("train", *PAIR, *words), resolve=True)
    with pytest.raises(ValueError, match=told):
        refuse(config)


def test_processes_that_were_started_and_devices_that_are_asked_for_must_agree(monkeypatch):
    for name, value in {"RANK": 1, "WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    config = OmegaConf.to_container(composed("train", *PAIR), resolve=True)
    with pytest.raises(ValueError, match="4 processes were started"):
        refuse(config)


def test_slurm_s_words_are_understood(monkeypatch):
    told = {
        "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
        "SLURM_NODELIST": "node[3-4]", "SLURM_JOB_ID": "1234567",
    }  # fmt: skip
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert devices.rank() == 3
    assert [os.environ[name] for name in ("LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE")] == ["1", "1", "4"]
    assert os.environ["MASTER_ADDR"] == "node3"
    assert os.environ["MASTER_PORT"] == str(4567 + 15000)


# two ranks, forked from this warm process


class Forked:
    """A rank that is a fork of this process: what ranks.launched gives, without the seconds of imports."""

    def __init__(self, rank, count, port, order):
        def work():
            os.setsid()
            os.environ |= ranks.environment(rank, count, port)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            ranks.obey(json.loads(json.dumps(order)))
            os._exit(0)  # at once, as threads of the parent are not there

        self.returncode = None
        self.pid = forked(work)

    def poll(self, flags=os.WNOHANG):
        if self.returncode is None:
            done, status = os.waitpid(self.pid, flags)
            self.returncode = os.waitstatus_to_exitcode(status) if done else None
        return self.returncode

    def wait(self):
        return self.poll(0)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


@pytest.fixture
def forks(monkeypatch):
    """Lets `run` start ranks as forks; gives all that were started."""
    started = []

    def launched(*words):
        started.append(Forked(*words))
        return started[-1]

    monkeypatch.setattr(ranks, "launched", launched)
    return started


def metrics(folder):
    with open(folder / "metrics.csv") as file:
        lines = [line for line in csv.reader(file) if "per_second" not in line[1]][1:]
    return {(int(step), name): float(value) for step, name, value in lines}


def assert_same_run(one, two, rtol=1e-5, atol=1e-6, told=1e-5):
    """Weights, averages, buffers, moments, metrics and final numbers, and the identity."""
    assert one.name == two.name
    a, b = (files.load(files.newest(folder / "checkpoints")[0]) for folder in (one, two))
    assert a["place"] == b["place"]
    for part in ("state_dict", "raw", "optimizer_states"):
        torch.testing.assert_close(b.get(part), a.get(part), rtol=rtol, atol=atol)
    assert metrics(one) == pytest.approx(metrics(two), rel=told, abs=1e-5)
    a, b = (json.loads((folder / "results.json").read_text()) for folder in (one, two))
    assert {a["status"], b["status"]} == {"finished"}
    for number, other in zip(a["numbers"], b["numbers"], strict=True):
        assert {**number, "value": 0, "stderr": 0, "seconds": 0, "time": 0} == {
            **other, "value": 0, "stderr": 0, "seconds": 0, "time": 0
        }  # fmt: skip
        assert number["value"] == pytest.approx(other["value"], rel=1e-4, abs=1e-5)


SMALL = {
    "vae": (*VAE, "ema=0.9"),
    "codebook": (
        "model=vqvae", "encoder.widths=[4,8]", "model.dim=4", "quantizer=ema", "quantizer.levels=8", "ema=0.5"
    ),
    "masked": (*TRANSFORMER, "objective=masked", "dataset=digits", "evaluate.n=0"),
    "glow": ("model=glow", "model.hidden=8", "model.steps=1", "model.scales=2", "trainer.gradient_clip_val=1"),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_two_processes_train_what_one_trains(tmp_path, forks, name):
    """Gradients, averages, prepared parts, codebooks, validations of an uneven split, and the final numbers."""
    words = (*SMALL[name], "trainer.accumulate_grad_batches=2", "trainer.limit_val_batches=null")
    for folder, trainer in (("one", ()), ("two", PAIR)):
        done = run("train", *TINY, *words, *trainer, f"runs={tmp_path / folder}")
        assert done.code == 0, done.err
    assert len(forks) == 2
    # a validation's loss per token is a mean of means, where ranks hide unequal numbers of tokens
    assert_same_run(only(tmp_path / "one"), only(tmp_path / "two"), told=1e-4 if name == "masked" else 1e-5)


def test_shards_train_what_one_process_trains(tmp_path, forks):
    words = (*TINY, *SMALL["vae"], "trainer.gradient_clip_val=1")
    for folder, trainer in (("one", ()), ("two", ("trainer=fsdp", "trainer.accelerator=cpu"))):
        done = run("train", *words, *trainer, f"runs={tmp_path / folder}")
        assert done.code == 0, done.err
    assert len(forks) == 2
    assert_same_run(only(tmp_path / "one"), only(tmp_path / "two"))


@pytest.fixture
def moment(monkeypatch):
    """Lets something happen once, in one rank, at the begin of the step after the second."""

    def set_to(rank, act):
        begin = Learner.on_train_batch_start

        def on_train_batch_start(self, batch, batch_idx):
            begin(self, batch, batch_idx)
            if self.trainer.global_step == 2 and devices.rank() == rank:
                act()

        monkeypatch.setattr(Learner, "on_train_batch_start", on_train_batch_start)

    set_to.begin = Learner.on_train_batch_start
    return set_to


STOPS = [("ddp", signal.SIGTERM, 0, 143), ("ddp", signal.SIGINT, 1, 130), ("fsdp", signal.SIGTERM, 1, 143)]


@pytest.mark.parametrize(("trainer", "number", "rank", "code"), STOPS)
def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_with_one_process(
    tmp_path, forks, moment, monkeypatch, trainer, number, rank, code
):
    words = (*TINY, *SMALL["vae"])
    assert run("train", *words, f"runs={tmp_path / 'whole'}").code == 0
    moment(rank, lambda: signal.raise_signal(number))
    began = time.monotonic()
    done = run("train", *words, *PAIR, f"trainer={trainer}", f"runs={tmp_path / 'stopped'}")
    assert time.monotonic() - began < 30
    assert done.code == code, done.err
    folder = only(tmp_path / "stopped")
    assert json.loads((folder / "results.json").read_text())["status"] == "stopped"
    assert files.load(files.newest(folder / "checkpoints")[0])["place"]["step"] == 3
    monkeypatch.setattr(Learner, "on_train_batch_start", moment.begin)
    done = run("train", *words, f"runs={tmp_path / 'stopped'}")
    assert done.code == 0, done.err
    assert "goes on from step-00000003.ckpt" in done.out
    assert_same_run(only(tmp_path / "whole"), folder)


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_what_one_process_began_two_go_on_with(tmp_path, forks, moment, monkeypatch, trainer):
    words = (*TINY, *SMALL["codebook" if trainer == "ddp" else "vae"])
    assert run("train", *words, f"runs={tmp_path / 'whole'}").code == 0
    moment(0, lambda: signal.raise_signal(signal.SIGTERM))
    assert run("train", *words, f"runs={tmp_path / 'stopped'}").code == 143
    assert not forks
    monkeypatch.setattr(Learner, "on_train_batch_start", moment.begin)
    done = run("train", *words, *PAIR, f"trainer={trainer}", f"runs={tmp_path / 'stopped'}")
    assert done.code == 0, done.err
    assert len(forks) == 2
    assert_same_run(only(tmp_path / "whole"), only(tmp_path / "stopped"))


def test_a_resume_may_change_the_number_of_devices(tmp_path, forks):
    words = (*TINY, *SMALL["vae"])
    assert run("train", *words, f"runs={tmp_path / 'one'}").code == 0
    folder = only(tmp_path / "one")
    files.newest(folder / "checkpoints")[0].unlink()
    (folder / "results.json").unlink()
    done = run("train", f"resume={folder}", "trainer.devices=2")
    assert done.code == 0, done.err
    assert len(forks) == 2


def bad():
    raise ValueError("x is far too odd")


DEATHS = {
    "kill": (lambda: os.kill(os.getpid(), signal.SIGKILL), "was ended by SIGKILL", 10),
    "error": (bad, "x is far too odd", 10),
    "frozen": (lambda: os.kill(os.getpid(), signal.SIGSTOP), "did not answer any more", 2 + 1 + 5),
}


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_all_with_its_own_error_last(tmp_path, forks, moment, monkeypatch, death, rank):
    monkeypatch.setattr(ranks, "GRACE", 1.0)
    act, told, seconds = DEATHS[death]
    moment(rank, lambda: ((tmp_path / "moment").touch(), act()))
    done = run("train", *TINY, *SMALL["vae"], *PAIR, "trainer.timeout=2", f"runs={tmp_path}")
    assert time.time() - (tmp_path / "moment").stat().st_mtime < seconds
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert last == f"error: rank {rank} of 2{': ' if death == 'error' else ' '}{told}"
    results = json.loads((only(tmp_path) / "results.json").read_text())
    assert results["status"] == "failed"
    assert results["reason"] == last.removeprefix("error: ")
    assert all(fork.returncode is not None for fork in forks)


def test_a_sweep_of_several_devices_is_a_sweep(tmp_path, forks):
    """Each job has two ranks of its own, a folder and its overrides; nothing is written twice."""
    words = (*TINY, *VAE, "seed=0,1", f"runs={tmp_path}")
    done = run("train", "-m", *words, *PAIR)
    assert done.code == 0, done.err
    assert len(forks) == 4
    folders = [path.parent for path in tmp_path.glob("*/results.json")]
    assert sorted(json.loads((f / "results.json").read_text())["config"]["seed"] for f in folders) == [0, 1]
    for folder in folders:
        with open(folder / "metrics.csv") as file:
            assert [line.split(",")[0] for line in file if ",train/loss," in line] == ["2", "4"]
    again = run("train", "-m", *words)
    assert again.out.count("is finished already") == 2, again.err
    assert len(forks) == 4


def sharded(rank, folder):
    """Losses, gradients and samples of a model in two shards, and how often its weights were gathered."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network, x = small()
    shard(network, init_device_mesh("cpu", (2,)))
    gathered, before = [], FSDPState._pre_forward
    FSDPState._pre_forward = lambda state, module, *rest: (
        gathered.append(type(module).__name__.removeprefix("FSDP")), before(state, module, *rest)
    )[1]  # fmt: skip
    loss = network.loss(x[rank::2])["loss"]
    loss.backward()
    gradients = {name: p.grad.full_tensor() for name, p in network.named_parameters()}
    with torch.no_grad():
        log_prob = network.log_prob(x)
        torch.manual_seed(1)
        sample = network.sample(3)
    parts = [p.to_local().numel() for p in network.parameters()]
    torch.save([loss.detach(), gradients, log_prob, sample, gathered, parts], f"{folder}/{rank}.pt")
    os._exit(0)


def small():
    torch.manual_seed(0)
    mixer = partial(Attention, heads=2)
    network = Autoregressive(shape=(12,), levels=5, dim=16, depth=2, mixer=mixer).double()
    return network, torch.randint(5, (8, 12), generator=torch.Generator().manual_seed(1))


def test_a_model_s_methods_gather_its_shards(tmp_path):
    """FSDP sees calls of modules only: loss, log_prob and sample are given to it by name, and it took them."""
    children = [forked(lambda rank=rank: sharded(rank, tmp_path)) for rank in range(2)]
    assert [ended(child) for child in children] == [0, 0]
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    network, x = small()
    loss = network.loss(x)["loss"]
    loss.backward()
    torch.testing.assert_close((one[0] + two[0]) / 2, loss.detach())
    torch.testing.assert_close(one[1], {name: p.grad for name, p in network.named_parameters()})
    with torch.no_grad():
        torch.testing.assert_close(one[2], network.log_prob(x))
        torch.manual_seed(1)
        assert torch.equal(one[3], network.sample(3))
    assert one[4].count("Autoregressive") == 3
    assert one[4].count("Block") >= 6
    assert sum(one[5]) + sum(two[5]) == sum(p.numel() for p in network.parameters())


# in processes of their own


def test_ranks_are_started_with_the_config_and_not_with_the_command_line(tmp_path):
    words = (*TINY, *VAE, "trainer.max_steps=2", f"runs={tmp_path}")
    done = process("train", *words, *PAIR, "trainer.max_steps=2")
    assert done.code == 0, done.err
    assert done.out.count("batch     64 = 32 per device x 2 devices x 1 accumulated") == 1
    assert json.loads((only(tmp_path) / "results.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_torchrun_may_start_the_processes(tmp_path):
    line = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        ROOT / "train.py",
    ]
    words = [*TINY, *VAE, *PAIR, f"runs={tmp_path / 'two'}"]
    done = subprocess.run([*map(str, line), *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("batch     64 = 32 per device") == 1
    assert run("train", *TINY, *VAE, f"runs={tmp_path / 'one'}").code == 0
    assert_same_run(only(tmp_path / "one"), only(tmp_path / "two"))
