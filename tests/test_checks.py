"""scripts/check.py: each check passes on our own models, and a fault put in on purpose is found by the check for it."""

import commands
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoo import chance
from zoo.evaluation import checks
from zoo.evaluation.checks import weights
from zoo.jobs.check import in_use, make
from zoo.models import VAE, Autoregressive
from zoo.nn import LinearAttention
from zoo.nn.couplings import Affine

program = commands.program("scripts/check")
SPACE = {"shape": [1, 3, 4], "levels": 5}
IMAGES = {"x": torch.randint(5, (4, 1, 3, 4), generator=torch.Generator().manual_seed(0))}
LINEAR = {
    "_target_": "zoo.models.Autoregressive", **SPACE, "dim": 8, "depth": 1, "dropout": 0.1,
    "mixer": {"_target_": "zoo.nn.LinearAttention", "_partial_": True, "heads": 2},
}  # fmt: skip
SOFTMAX = {**LINEAR, "mixer": {"_target_": "zoo.nn.Attention", "_partial_": True, "heads": 2}}
FLOW = {
    "_target_": "zoo.models.RealNVP", "shape": [1, 4, 4], "levels": 5, "hidden": 4, "depth": 1, "scales": 1,
}  # fmt: skip
BOUND = {
    "_target_": "zoo.models.VAE", "shape": [1, 3, 4], "levels": 2, "latent": 2, "beta": 1.0,
}  # fmt: skip


def found(check, node):
    """What a check of the package says of a model, on random images."""
    draw = torch.Generator().manual_seed(0)
    batch = {"x": torch.randint(node["levels"], (4, *node["shape"]), generator=draw)}
    if check is checks.fields:
        return check(node, batch, make)
    if check is checks.round_trip:
        return check(make(node, batch), batch, lambda seed: make(node, batch, seed))
    return check(make(node, batch), batch)


def mask_off(monkeypatch):
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: real(*a, **{**k, "is_causal": False})
    )


def log_determinant_dropped(monkeypatch):
    real = Affine.forward
    monkeypatch.setattr(
        Affine, "forward", lambda self, *a: (real(self, *a)[0], torch.zeros_like(real(self, *a)[1]))
    )


def inverse_of_another(monkeypatch):
    monkeypatch.setattr(Affine, "inverse", lambda self, z, parameters: z)


def state_reset(monkeypatch):
    real = LinearAttention.step
    monkeypatch.setattr(LinearAttention, "step", lambda self, x, state: (real(self, x, state)[0], state))


def field_unused(monkeypatch):
    real = VAE.loss

    def loss(self, x, y=None):
        terms = real(self, x, y)
        return terms | {"loss": terms["reconstruction"] + terms["kl"]}

    monkeypatch.setattr(VAE, "loss", loss)


def measured_but_not_saved(monkeypatch):
    """A number that counts and stands in no state_dict."""
    real = VAE.__init__

    def init(self, *args, **options):
        real(self, *args, **options)
        self.scale = torch.rand(())

    forward = VAE.loss
    monkeypatch.setattr(VAE, "__init__", init)
    monkeypatch.setattr(
        VAE, "loss", lambda self, x, y=None: {n: v * self.scale for n, v in forward(self, x, y).items()}
    )


def nothing_computed_again(monkeypatch):
    monkeypatch.setattr(weights, "checkpoint_blocks", lambda model, policy: None)


def other_gradients(monkeypatch):
    """Blocks that are computed again without the dropout that they had."""
    from zoo.nn import checkpointing

    real = checkpointing.checkpoint
    monkeypatch.setattr(
        checkpointing, "checkpoint", lambda *a, **k: real(*a, **{**k, "preserve_rng_state": False})
    )


def noise_of_its_own(monkeypatch):
    """Each process draws as if its examples were all that there are."""

    def dealt(*places, rows, rank=0, world=1):
        chance.at(*places[0], rank)
        return chance.ALONE

    monkeypatch.setattr(chance, "dealt", dealt)


def reals_for_integers(monkeypatch):
    real = Autoregressive.sample
    monkeypatch.setattr(Autoregressive, "sample", lambda self, n, y=None: real(self, n, y).float())


def tokens_shifted_the_other_way(monkeypatch):
    """Each token is told from the one behind it."""
    monkeypatch.setattr(
        Autoregressive, "hidden", lambda self, tokens, y=None: self.backbone(self.inputs(tokens[:, 1:], y))
    )


def weight_unused(monkeypatch):
    real = Autoregressive.__init__

    def init(self, **options):
        real(self, **options)
        self.extra = nn.Linear(2, 2)

    monkeypatch.setattr(Autoregressive, "__init__", init)


PAIRS = [
    (checks.causal, SOFTMAX, mask_off, "what is told of element "),
    (checks.causal, LINEAR, tokens_shifted_the_other_way, "what is told of element "),
    (checks.log_determinant, FLOW, log_determinant_dropped, "nats from autograd's Jacobian"),
    (checks.invertible, FLOW, inverse_of_another, "is off by"),
    (checks.steps_are_parallel, LINEAR, state_reset, "backbone: after a prefill of 4, token "),
    (checks.fields, BOUND, field_unused, "beta: no other value changes"),
    (checks.round_trip, BOUND, measured_but_not_saved, "something that counts is in no state_dict"),
    (checks.recomputed, LINEAR, nothing_computed_again, "nothing is computed again"),
    (checks.recomputed, LINEAR, other_gradients, "when blocks are computed again"),
    (checks.processes, BOUND, noise_of_its_own, "from that of one process"),
    (checks.samples_fit, LINEAR, reals_for_integers, "sample gives torch.float32"),
    (checks.trains, LINEAR, weight_unused, "extra.weight (and 1 more) gets no gradient"),
]
SOUND = {(check.__name__, node["_target_"]): (check, node) for check, node, *_ in PAIRS}


@pytest.mark.parametrize(("check", "node"), SOUND.values(), ids=[" ".join(key) for key in SOUND])
def test_a_check_passes_on_a_model_as_it_is(check, node):
    assert found(check, node).verdict == "ok", found(check, node).words


@pytest.mark.parametrize(("check", "node", "fault", "words"), PAIRS, ids=[pair[2].__name__ for pair in PAIRS])
def test_a_fault_is_found_by_its_check(check, node, fault, words, monkeypatch):
    fault(monkeypatch)
    said = found(check, node)
    assert said.verdict == "fails"
    assert words in said.words


@pytest.mark.parametrize(
    ("check", "node", "why"),
    [
        (checks.invertible, LINEAR, "no part has an inverse"),
        (checks.log_determinant, LINEAR, "no part has an inverse"),
        (checks.causal, BOUND, "no exact likelihood"),
        (checks.steps_are_parallel, BOUND, "no part with prefill and step"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_a_model_has_not_is_no_failure(check, node, why):
    said = found(check, node)
    assert said.verdict == "does not apply"
    assert why in said.words


def test_a_fault_deep_inside_is_named(monkeypatch):
    """Of a flow the coupling is named, not the whole chain, where the coupling by itself is wrong."""
    log_determinant_dropped(monkeypatch)
    assert "bijection.layers." in found(checks.log_determinant, FLOW).words


def test_a_source_may_be_seen_whole():
    """Of a translation, by every token of the target."""
    node = {"_target_": "zoo.models.Seq2Seq", "shape": [6], "levels": 5, "source_levels": 4, "dim": 8, "depth": 1,
            "heads": 2, "mixer": SOFTMAX["mixer"]}  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    batch = {name: torch.randint(4, (4, 6), generator=draw) for name in ("x", "y")}
    said = checks.causal(make(node, batch), batch)
    assert said.verdict == "ok", said.words


def test_pixels_are_read_in_the_models_own_order():
    """A MADE of random order is causal in its order, and in none that is not its own."""
    node = {"_target_": "zoo.models.MADE", **SPACE, "hidden": [16], "random_order": True}
    assert found(checks.causal, node).verdict == "ok"
    model = make(node, IMAGES)
    model.ranks[0] = model.ranks[0].flip(0)
    assert checks.causal(model, IMAGES).verdict == "fails"


def test_fields_of_a_mixer_inside_are_turned_too():
    node = {**SOFTMAX, "mixer": {**SOFTMAX["mixer"], "kv_heads": None}}
    tried = []

    def built(other, batch):
        tried.append(other)
        return make(other, batch)

    assert checks.fields(node, IMAGES, built).verdict == "ok"
    assert any(other["mixer"]["kv_heads"] == 1 for other in tried)
    assert {other["mixer"]["heads"] for other in tried} > {2}


def test_a_mixer_that_is_a_whole_layer_has_no_feed_forward_to_turn():
    node = {"mixer": {"_target_": "zoo.nn.Mamba"}, "mlp": {"_target_": "zoo.nn.FeedForward"}}
    assert in_use(node)["mlp"] is None
    assert in_use({**node, "mixer": SOFTMAX["mixer"]})["mlp"] == node["mlp"]


def test_a_part_brings_a_model_that_takes_it():
    assert program.completed(["mixer=linear"]) == ["mixer=linear", "model=transformer"]
    assert program.completed(["position=rope", "model=roformer"]) == ["position=rope", "model=roformer"]
    assert program.completed(["coupling=affine"])[1].startswith("model=")


def test_the_command_tells_a_line_each_and_a_status(tmp_path, monkeypatch):
    words = ("model=transformer", "mixer=linear", "model.dim=8", "model.depth=1", "mixer.heads=2")
    words += ("dataset.shape=[1,8,8]", "threads=1")
    quick = dict.fromkeys(
        ("fields", "processes", "log_determinant"), lambda *a: checks.Finding("ok", "left out")
    )
    for name, stand_in in quick.items():
        monkeypatch.setattr(checks, name, stand_in)
    done = commands.run("scripts/check", *words)
    assert done.code == 0, done.out + done.err
    assert len(done.out.splitlines()) == 10
    assert all(line[:6] in program.MARKS.values() for line in done.out.splitlines())
    state_reset(monkeypatch)
    done = commands.run("scripts/check", *words)
    assert done.code == 2
    (bad,) = (line for line in done.out.splitlines() if line.startswith("FAILS"))
    assert "a step equals the parallel form" in bad


def test_a_part_of_ones_own_is_checked_from_outside(tmp_path, monkeypatch):
    """A mixer that looks ahead, in a folder of the user's."""
    (tmp_path / "ahead.py").write_text(
        "from torch import nn\n\n\n"
        "class Ahead(nn.Module):\n"
        "    def __init__(self, dim, *, causal=True):\n"
        "        super().__init__()\n"
        "        self.map = nn.Linear(dim, dim)\n\n"
        "    def forward(self, x):\n"
        "        return self.map(x.roll(-1, 1))\n"
    )
    (tmp_path / "mine" / "mixer").mkdir(parents=True)
    (tmp_path / "mine" / "mixer" / "ahead.yaml").write_text("_target_: ahead.Ahead\n_partial_: true\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("fields", "processes"):
        monkeypatch.setattr(checks, name, lambda *a: checks.Finding("ok", "left out"))
    words = ("mixer=ahead", "position=none", "model.dim=8", "model.depth=1", "threads=1")
    done = commands.run("scripts/check", "--config-dir", tmp_path / "mine", *words)
    assert done.code == 2, done.err
    (line,) = (line for line in done.out.splitlines() if "the future is not seen" in line)
    assert line.startswith("FAILS")
