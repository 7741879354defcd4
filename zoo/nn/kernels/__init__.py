"""Which program computes a mixer: PyTorch's own operations, or a fused kernel with the same result.

    torch       PyTorch, on every device
    triton      the project's Triton kernel, zoo.nn.kernels.scan
    library     a published one: mamba-ssm, flash-linear-attention. Optional; zoo.nn.kernels.library calls it
    auto        on a GPU the library where it is installed and takes such numbers, then Triton, then PyTorch; on a
                CPU PyTorch

Steps, one token at a time, are always PyTorch's. flex and sdpa, for softmax attention: zoo.nn.kernels.flex.
"""

import os
from functools import cache
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor


class Library(NamedTuple):
    """A published kernel: the module it is in, the package to install, the numbers and widths it takes."""

    module: str
    package: str
    types: tuple[torch.dtype, ...]
    widest: int | None = None


HALF = (torch.bfloat16, torch.float16)  # where float32 is taken, its products have the digits of tf32 only
LIBRARIES = {
    "selective_scan": Library(
        "mamba_ssm.ops.selective_scan_interface", "mamba-ssm", (torch.float32, *HALF), 256
    ),
    "state_space": Library("mamba_ssm.ops.triton.ssd_combined", "mamba-ssm", HALF),
    "linear": Library("fla.ops.simple_gla", "flash-linear-attention", HALF),
    "delta": Library("fla.ops.gated_delta_rule", "flash-linear-attention", HALF, 256),
}
TRITON = frozenset({"selective_scan"})  # where there is a kernel of the project's own


def check_kernel(kernel: str, operation: str) -> None:
    """Raise ValueError if an operation of LIBRARIES has no kernel of that name."""
    if kernel == "triton" and operation not in TRITON:
        raise ValueError(
            "kernel=triton is not there for this mixer, whose chunks are products of matrices already; "
            "take kernel=torch, or auto"
        )
    kernels = ["auto", "torch", "library", *(["triton"] if operation in TRITON else [])]
    if kernel not in kernels:
        raise ValueError(
            f"kernel={kernel} is none of {', '.join(kernels)}; auto takes the fastest that is there"
        )


def choose(kernel: str, operation: str, x: Tensor, width: int) -> str:
    """torch, triton or library: what computes an operation of LIBRARIES on numbers such as x.

    width       of the state, in features of a key

    Raises ValueError, why and what instead, where a kernel is asked for by name that cannot run.
    """
    if kernel == "auto":
        # the libraries add up some gradients in any order
        order = ("triton",) if torch.are_deterministic_algorithms_enabled() else ("library", "triton")
        able = (name for name in order if x.is_cuda and not obstacle(name, operation, x, width))
        return next(able, "torch")
    if why := obstacle(kernel, operation, x, width):
        raise ValueError(why)
    return kernel


def obstacle(kernel: str, operation: str, x: Tensor, width: int) -> str | None:
    """Why a kernel cannot run, in a sentence; None if it can."""
    if kernel == "torch":
        return None
    if kernel == "triton":
        if operation not in TRITON:
            return f"kernel=triton does not compute {operation}; take kernel=torch"
        if not installed("triton"):
            return "kernel=triton needs the package triton; pip install triton, or take kernel=torch"
        # Triton's interpreter, for tests, runs anywhere
        if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            return f"kernel=triton needs a GPU, and this is computed on {x.device.type}; take kernel=auto, or torch"
        return None
    library = LIBRARIES[operation]
    if not x.numel():
        return "kernel=library has nothing to compute without tokens; take kernel=torch"
    if not x.is_cuda:
        return (
            f"kernel=library needs a GPU, and this is computed on {x.device.type}; take kernel=auto, or torch"
        )
    if not installed(library.module):
        return (
            f"kernel=library needs the package {library.package}, which cannot be imported; "
            f"pip install {library.package}, or take kernel=auto"
        )
    if working_type(x) not in library.types:
        kinds = ", ".join(str(kind).removeprefix("torch.") for kind in library.types)
        return (
            f"kernel=library computes in {kinds}, and this is {str(working_type(x)).removeprefix('torch.')}; "
            "train with trainer.precision=bf16-mixed, or take kernel=torch"
        )
    if library.widest is not None and width > library.widest:
        return (
            f"kernel=library takes states of up to {library.widest} features, and these have {width}; "
            "take kernel=torch"
        )
    return None


def working_type(x: Tensor) -> torch.dtype:
    """In what products are computed here: autocast's type where it is on, else that of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


@cache
def installed(module: str) -> bool:
    """Whether a module can be imported, with all that it needs."""
    try:
        import_module(module)
    except ImportError:
        return False
    return True
