"""The processes of one training, one for each device: how many, which of them this is, and how they meet.

Whoever starts them (torchrun, Slurm's srun, or zoo.jobs.ranks) tells each by the environment variables of torchrun:
RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. Rank 0 alone writes files and speaks.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

patience = timedelta(seconds=600)  # how long a process waits for the others before it gives up


def count(config: Mapping[str, Any]) -> int:
    """How many processes a config trains with: trainer.devices x trainer.num_nodes."""
    return per_node(config) * config["trainer"]["num_nodes"]


def per_node(config: Mapping[str, Any]) -> int:
    """How many processes that is on one node. ValueError for what is no number of devices."""
    devices = config["trainer"]["devices"]
    if isinstance(devices, list):
        return len(devices)
    if devices in ("auto", -1):
        return max(1, torch.cuda.device_count()) if on_gpus(config) else 1
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"trainer.devices={devices}: a whole number, 1 or more; a list of GPUs; or auto")
    return devices


def on_gpus(config: Mapping[str, Any]) -> bool:
    """Whether a config trains on CUDA's devices."""
    return config["trainer"]["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def started() -> bool:
    """Whether this process was started as one of several; Slurm's words for it are brought into torchrun's."""
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        from lightning.pytorch.plugins.environments import SLURMEnvironment

        slurm = SLURMEnvironment(auto_requeue=False)
        os.environ |= {
            "RANK": os.environ["SLURM_PROCID"],
            "LOCAL_RANK": os.environ["SLURM_LOCALID"],
            "GROUP_RANK": os.environ["SLURM_NODEID"],
            "WORLD_SIZE": os.environ["SLURM_STEP_NUM_TASKS"],
            "MASTER_ADDR": slurm.main_address,
            "MASTER_PORT": str(slurm.main_port),
        }
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


def rank() -> int:
    """Which of the processes this is; 0 where there is only one."""
    return int(os.environ["RANK"]) if started() else 0


def check(config: Mapping[str, Any]) -> None:
    """Raise ValueError where the processes that were started, or can be, are not those that a config asks for."""
    asked, nodes = count(config), config["trainer"]["num_nodes"]
    if started() and int(os.environ["WORLD_SIZE"]) != asked:
        raise ValueError(
            f"{os.environ['WORLD_SIZE']} processes were started, and trainer.devices={per_node(config)} x "
            f"trainer.num_nodes={nodes} asks for {asked}; the two must agree"
        )
    if nodes > 1 and not started():
        raise ValueError(
            f"trainer.num_nodes={nodes}: on several nodes torchrun or srun must start the processes; docs/devices.md"
        )
    there = torch.cuda.device_count() if on_gpus(config) else asked
    if per_node(config) > there and not started():
        raise ValueError(f"trainer.devices={per_node(config)}: there are {there} GPUs here")


def join(config: Mapping[str, Any]) -> None:
    """Meet the other processes, if there are any: nobody goes on before all are there."""
    if not started() or dist.is_initialized():
        return
    global patience
    patience = timedelta(seconds=config["trainer"].get("timeout", patience.total_seconds()))
    gpu = on_gpus(config)
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo", timeout=patience)


def lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone, or did not answer in time."""
    told = ("gloo", "Gloo", "NCCL", "pair closure", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, dist.DistBackendError | dist.DistNetworkError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in told)
    )


def leave() -> None:
    """Part with the other processes, when all have done the same."""
    if dist.is_initialized():
        dist.destroy_process_group()
