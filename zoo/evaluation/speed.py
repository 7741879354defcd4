"""How fast a model of sequences is trained and generates, and what it has to remember, by length.

T tokens are what was trained on, a multiple m is a length of m T tokens. Times are of this machine.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.evaluation.length import FAILS

REPEATS = 3  # timings, after one that is not counted; the median is told
STEPS = 16  # most tokens generated in one timing


def speed(
    model: Any,
    batch: Mapping[str, Tensor],
    multiples: Sequence[int],
    *,
    split: str,
    hardware: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Numbers of training, of generation and of the state, four for each multiple m.

    train_tokens_per_second_at_4x     forward and backward, of as many tokens at every length
    train_peak_memory_at_4x           MB of the GPU beyond what lies there before
    generate_tokens_per_second_at_4x  the last few of m T tokens, of all examples of the batch together
    state_bytes_at_4x                 what one example remembers after m T tokens: the sum over its tensors

    model       has loss, and embed, backbone (prefill, step) and head, as zoo.models.Autoregressive
    batch       {"x": (B, T), "y"?} of the data, on the model's device; longer sequences repeat it
    hardware    what it ran on: it stands in the protocol

    Where a model cannot do it the number's value is None and `reason` says why. Weights are left as they are.

    Raises ValueError for a model without these parts, data that are no sequences, and multiples below 1.
    """
    x = batch["x"]
    check(model, x.shape[1:])
    if min(multiples) < 1:
        raise ValueError(f"lengths={list(multiples)}: multiples of the training length are at least 1")
    numbers = []
    for m in sorted(set(multiples)):
        B = max(1, len(x) // m)
        longer = {
            name: value[:B].repeat(1, m) if value.shape == x.shape else value[:B]
            for name, value in batch.items()
        }
        for name, unit, kind, size, measure in (
            ("train_tokens_per_second", "tokens/s", "estimate", B, trained),
            ("train_peak_memory", "MB", "estimate", B, memory),
            ("generate_tokens_per_second", "tokens/s", "estimate", B, generated),
            ("state_bytes", "bytes", "exact", 1, remembered),
        ):
            how = {"method": "speed", "context": m * x.shape[1], "multiple": m, "batch": size}
            if kind == "estimate":
                how |= {"precision": str(next(model.parameters()).dtype).rpartition(".")[2]}
                how |= hardware or {}
            number = {"name": f"{name}_at_{m}x", "unit": unit, "kind": kind, "split": split, "count": size}
            try:
                value, reason = measure(model, longer), None
            except FAILS as error:
                value, reason = None, str(error).splitlines()[0]
            numbers.append(
                {**number, "value": value, **({"reason": reason} if reason else {}), "protocol": how}
            )
    return numbers


def check(model: Any, shape: Sequence[int]) -> None:
    """Raises ValueError for a model that is no autoregressive one, and for examples that are no sequences."""
    if not all(hasattr(model, part) for part in ("embed", "backbone", "head")):
        raise ValueError(
            f"speed=true: {type(model).__name__} has no embed, backbone and head; "
            "speed by length is of autoregressive models"
        )
    if len(shape) != 1:
        raise ValueError(f"speed=true: examples of shape {tuple(shape)} are no sequences of tokens")


def trained(model: Any, batch: Mapping[str, Tensor]) -> float:
    """Tokens per second, forward and backward."""
    return batch["x"].numel() / seconds(lambda: learn(model, batch), batch["x"].device)


def memory(model: Any, batch: Mapping[str, Tensor]) -> float:
    """MB that forward and backward need beside weights and batch, gradients among them. ValueError off the GPU."""
    device = batch["x"].device
    if device.type != "cuda":
        raise ValueError(f"device={device.type}: peak memory is measured on a GPU only")
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    learn(model, batch)
    return round((torch.cuda.max_memory_allocated(device) - before) / 1e6, 3)


def learn(model: Any, batch: Mapping[str, Tensor]) -> None:
    """What a step of training costs, without its end."""
    mode = model.training
    model.train()
    try:
        with torch.enable_grad():
            model.loss(batch["x"], batch.get("y"))["loss"].backward()
    finally:
        model.zero_grad(set_to_none=True)
        model.train(mode)


@torch.inference_mode()
def generated(model: Any, batch: Mapping[str, Tensor]) -> float:
    """Tokens per second, one after the other; the last of them ends the batch's length. ValueError without sample."""
    if not hasattr(model, "sample"):
        raise ValueError(f"{type(model).__name__} generates no tokens")
    x = batch["x"].clamp(min=0)
    timings = REPEATS + 1
    steps = max(1, min(STEPS, x.shape[1] // (2 * timings)))
    _, state = model.backbone.prefill(model.embed(x[:, : max(1, x.shape[1] - steps * timings)]))
    token = x[:, -1]

    def go_on() -> None:
        nonlocal state, token
        for _ in range(steps):
            h, state = model.backbone.step(model.embed(token), state)
            token = model.head(h).argmax(-1)

    return len(x) * steps / seconds(go_on, x.device)


@torch.inference_mode()
def remembered(model: Any, batch: Mapping[str, Tensor]) -> int:
    """Bytes of the state of one example behind the batch's tokens."""
    _, state = model.backbone.prefill(model.embed(batch["x"][:1].clamp(min=0)))
    return state_bytes(state)


def state_bytes(state: Any) -> int:
    """Bytes of all different tensors in a state, however deep they lie."""
    return sum({id(t): t.numel() * t.element_size() for t in tensors(state)}.values())


def tensors(state: Any) -> Iterator[Tensor]:
    """The tensors in containers and in the attributes of objects."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors(value)
    elif hasattr(state, "__dict__"):
        yield from tensors(vars(state))


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The median time of some repetitions, after one that warms up."""

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    once()
    return statistics.median(once() for _ in range(REPEATS))
