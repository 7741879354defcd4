"""Whether two processes that share a batch learn what one learns from all of it."""

import copy
import multiprocessing
import os
import queue
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zoo import chance
from zoo.evaluation.checks.finding import Batch, Finding, fails, farthest, holds, silent, still
from zoo.types import Prepared, Scheduled, can

WORLD = 2
NEAR = 1e-6  # sums in another order, in float64; a mean over processes of what a batch normalises is exact
PATIENCE = 120  # seconds until two processes count as hung


def processes(model: nn.Module, batch: Batch) -> Finding:
    """Gradients, the loss and what a step leaves in buffers are those of one process with the whole batch.

    Two processes of gloo have every other example each; dropout is off. Noise is drawn for the whole batch.
    """
    if not dist.is_available() or not hasattr(os, "fork"):
        return silent("this system has no gloo, or cannot fork")
    if len(batch["x"]) % WORLD:
        return silent(f"{len(batch['x'])} examples are not shared evenly")
    return in_turn([(model, batch)])[0]


def in_turn(subjects: Sequence[tuple[nn.Module, Batch]]) -> list[Finding]:
    """What one pair of processes finds of several models, each with its batch, one after the other."""
    subjects = [(still(model).train(), batch) for model, batch in subjects]
    context = multiprocessing.get_context("fork")
    answers = [context.Queue() for _ in range(WORLD)]
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            context.Process(target=_work, args=(answers[rank], subjects, rank, f"{folder}/meet"), daemon=True)
            for rank in range(WORLD)
        ]
        for worker in workers:
            worker.start()
        try:
            return [_compared(learned(copy.deepcopy(m), batch, 0, 1), answers) for m, batch in subjects]
        finally:
            for worker in workers:
                worker.join(1)
                worker.kill()


def _compared(whole: Mapping[str, Tensor], answers: Sequence[Any]) -> Finding:
    """What one process learned of a batch against what each of two says it did."""
    try:
        told = [answer.get(timeout=PATIENCE) for answer in answers]
    except queue.Empty:
        return fails(f"two processes did not end within {PATIENCE} s: one waits for the other")
    if errors := [text for text in told if isinstance(text, str)]:
        return fails(errors[0])
    worst, name = max(
        farthest(whole, {key: torch.from_numpy(value) for key, value in one.items()}) for one in told
    )
    if not worst < NEAR:
        return fails(
            f"{name} differs by {worst:.1e} from that of one process: is the loss a mean over examples, and not over "
            "the tokens that count, and is noise drawn for the batch by torch's default generator?"
        )
    return holds(f"loss, gradients and buffers are those of one process to {worst:.0e}")


def learned(model: Any, batch: Batch, rank: int, world: int) -> dict[str, Tensor]:
    """The loss, gradients and buffers of a step on this process's share, as all processes have them after it.

    What is measured is measured here, by each process on the same examples, as in a training.
    """
    if can(model, Prepared):
        chance.at("check", "prepare")
        model.prepare(iter([dict(batch)]))
    share = {name: value[rank::world] for name, value in batch.items()}
    if can(model, Scheduled):
        model.at(0)
    with torch.enable_grad(), chance.dealt(("check", "loss"), rows=[len(batch["x"])], rank=rank, world=world):
        value = model.loss(**share)["loss"]
        value.backward()
    found = {"the loss": value.detach().clone()}
    found |= {f"the gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    if world > 1:
        for tensor in found.values():
            dist.all_reduce(tensor)
            tensor /= world
    if can(model, Scheduled):
        model.at(1)
    return found | dict(model.named_buffers())


def _work(answers: Any, subjects: Sequence[tuple[nn.Module, Batch]], rank: int, meet: str) -> None:
    """One of the processes; its answers are plain arrays, or sentences of what went wrong."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=WORLD)
    for model, batch in subjects:
        try:
            found = learned(model, batch, rank, WORLD)
            answers.put({name: value.detach().numpy() for name, value in found.items()})
        except Exception as error:
            told = str(error).splitlines()[0] if str(error) else ""
            answers.put(f"process {rank}: {type(error).__name__}: {told}")
    dist.barrier()
