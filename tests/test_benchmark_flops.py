"""What scripts/benchmark.py counts as a Transformer's work."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from zoo.models import Autoregressive
from zoo.nn import Attention

SIZES = {"dim": 8, "depth": 2, "tokens": 16, "levels": 5, "batch": 3}


@pytest.fixture
def training_flops(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "scripts"), *sys.path])
    from benchmarks.mfu import training_flops

    return training_flops


def test_a_transformers_work_is_what_a_hand_counts(training_flops):
    # per token: q, k, v 2 * 2 * 6; output 2 * 2 * 2; feed-forward 2 * 2 * 8 twice; of 4 keys 2 are seen, so scores
    # 2 * 2 * 2 and values the same; logits 2 * 2 * 3
    forward = 4 * (24 + 8 + 64 + 16 + 12)
    assert training_flops(dim=2, depth=1, tokens=4, levels=3, batch=1) == 3 * forward


def test_a_transformers_work_is_that_of_its_matrices_and_attention(training_flops):
    model = Autoregressive(
        shape=(SIZES["tokens"],), levels=5, dim=8, depth=2, mixer=partial(Attention, heads=2)
    )
    with FlopCounterMode(display=False) as counter:
        model.loss(torch.randint(5, (3, SIZES["tokens"])))["loss"].backward()
    counts = counter.get_flop_counts()["Global"]
    matrices = sum(n for name, n in counts.items() if str(name) in ("aten.mm", "aten.addmm"))
    attention = 3 * 2 * 3 * 16 * (2 * 8 * 16)  # forward and twice backward, blocks, examples, tokens, 2 D T
    assert training_flops(**SIZES) == matrices + attention
