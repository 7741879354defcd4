"""Tokens drawn one by one after 1,024 others, with a cache: ours against GPT-2 of `transformers`, the same size.

Once by the library's own function, `sample` against `generate`; once stepped by hand and drawn by the same
lines, so that neither pays for more than its network and its cache. A token is the time between two looks at
the table of embeddings.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator
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
    ours = Autoregressive(
        shape=(BEFORE + WARM + TOKENS,), levels=VOCABULARY, dim=DIM, depth=DEPTH, mixer=mixer
    ).eval()
    theirs = Theirs()
    size = f"dim {DIM}, {DEPTH} blocks, {HEADS} heads, batch 1"
    ways = {
        "by its own function": (
            partial(clocked, ours.embed, partial(ours.sample, 1, prompt=prompt)),
            partial(clocked, theirs.model.transformer.wte, partial(generate, theirs.model, prompt)),
            0.85,
        ),
        "by hand": (partial(token, Ours(ours), prompt), partial(token, theirs, prompt), None),
    }
    for way, (mine, other, most) in ways.items():
        seconds = interleaved({"ours": mine, "theirs": other}, 15)
        yield Row(
            f"a token after {BEFORE:,}, {way}",
            ms(seconds["ours"]),
            ms(seconds["theirs"]),
            over(seconds["ours"], seconds["theirs"]),
            most=most,
            note=f"GPT-2 of transformers; {size}; ours with rotary positions",
        )


def clocked(table: nn.Module, draw: Callable[[], Any]) -> float:
    """CPU seconds of one token of a function that draws them all."""
    times: list[float] = []
    hook = table.register_forward_pre_hook(lambda *call: times.append(time.process_time()))
    draw()
    hook.remove()
    return (times[-1] - times[WARM]) / (len(times) - 1 - WARM)


def generate(model: Any, prompt: Tensor) -> None:
    seen = torch.ones_like(prompt)
    model.generate(
        prompt, attention_mask=seen, max_new_tokens=WARM + TOKENS, do_sample=True, top_k=0, use_cache=True
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
