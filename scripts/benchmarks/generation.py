"""Tokens drawn one by one after 1,024 others, with a cache: ours against GPT-2 of `transformers`, the same size.

Both are stepped by hand and draw by the same lines, so that neither pays for its `generate`.
"""

import importlib.util
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import INSTALL, Row, interleaved, ms, over
from zoo.models import Autoregressive
from zoo.nn import Attention

VOCABULARY, DIM, DEPTH, HEADS = 65, 256, 6, 4
BEFORE, WARM, TOKENS = 1024, 4, 48


def rows() -> Iterator[Row]:
    if importlib.util.find_spec("transformers") is None:
        yield Row("a generated token", theirs="transformers' GPT-2", note=INSTALL)
        return
    torch.set_num_threads(1)
    prompt = torch.randint(VOCABULARY, (1, BEFORE))
    mixer = partial(Attention, heads=HEADS)
    ours = Autoregressive(shape=(2 * BEFORE,), levels=VOCABULARY, dim=DIM, depth=DEPTH, mixer=mixer).eval()
    candidates = {"ours": partial(token, Ours(ours), prompt), "theirs": partial(token, Theirs(), prompt)}
    seconds = interleaved(candidates, 15)
    yield Row(
        f"a generated token after {BEFORE:,}",
        ms(seconds["ours"]),
        ms(seconds["theirs"]),
        over(seconds["ours"], seconds["theirs"]),
        most=0.85,
        note=f"GPT-2 of transformers; dim {DIM}, {DEPTH} blocks, {HEADS} heads, batch 1",
    )


@torch.no_grad()
def token(model: Any, prompt: Tensor) -> float:
    """CPU seconds of one token after a prompt."""
    logits = model.begin(prompt)
    for i in range(-WARM, TOKENS):
        if i == 0:
            before = time.process_time()
        logits = model.go_on(torch.multinomial(logits.softmax(-1), 1))
    return (time.process_time() - before) / TOKENS


class Ours:
    """Logits of the next token, from a prompt and then from a token each."""

    def __init__(self, model: Autoregressive) -> None:
        self.model = model

    def begin(self, prompt: Tensor) -> Tensor:
        h, self.state = self.model.backbone.prefill(self.model.inputs(prompt, None))
        return self.model.head(h[:, -1])

    def go_on(self, x: Tensor) -> Tensor:
        h, self.state = self.model.backbone.step(self.model.embed(x[:, 0]), self.state)
        return self.model.head(h)


class Theirs:
    """The same of GPT-2 as `transformers` has it."""

    def __init__(self) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=2 * BEFORE,
            n_embd=DIM,
            n_layer=DEPTH,
            n_head=HEADS,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.model: nn.Module = GPT2LMHeadModel(config).eval()

    def begin(self, prompt: Tensor) -> Tensor:
        self.cache = None
        return self.go_on(prompt)

    def go_on(self, x: Tensor) -> Tensor:
        out = self.model(input_ids=x, past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        return out.logits[:, -1]
