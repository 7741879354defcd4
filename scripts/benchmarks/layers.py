"""One layer, forward and backward: its time and its memory, on a GPU where there is one, else on one thread.

Time is CPU time of the process; on a GPU it is the wall clock's, from an idle device to an idle device.
Memory is the largest sum of what the allocator has given out since the step began, without inputs and weights:
activations, gradients and what is in between. On a CPU it is summed up from torch's profiler, to the byte.
"""

import os
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Step:
    """Forward and backward of y = layer(*inputs), or of the first of its results; a call returns its seconds."""

    def __init__(self, layer: Callable[..., Any], *inputs: Tensor) -> None:
        self.layer = layer.to(DEVICE) if isinstance(layer, nn.Module) else layer
        self.inputs = [x.detach().to(DEVICE).requires_grad_() for x in inputs]
        self.slope: Tensor | None = None

    def __call__(self) -> float:
        self.clear()
        before = clock()
        self.go()
        return clock() - before

    def go(self) -> None:
        y = self.layer(*self.inputs)
        y = y[0] if isinstance(y, tuple) else y
        if self.slope is None:
            self.slope = torch.randn_like(y)
        y.backward(self.slope)

    def clear(self) -> None:
        """No gradients, as before the first step."""
        weights = self.layer.parameters() if isinstance(self.layer, nn.Module) else ()
        for leaf in (*self.inputs, *weights):
            leaf.grad = None

    def memory(self) -> float:
        """MB at the peak of one."""
        self()  # caches are filled, the slope is there
        self.clear()
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.go()
            return (torch.cuda.max_memory_allocated() - before) / 1e6
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler says that it starts and stops
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            self.go()
        changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
        changes.sort(key=lambda event: event.start_ns())
        return max(accumulate(event.nbytes() for event in changes)) / 1e6


def clock() -> float:
    """Seconds, when all work is done."""
    if DEVICE.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()
