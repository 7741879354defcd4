"""A model in shards: each device keeps a part of every weight, and gathers the whole only while it is used.

torch's fully_shard (FSDP2): it acts where a module is called. A model is not called; its methods are, so they are
given to it by name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

METHODS = ("loss", "statistics", "log_prob", "sample", "encode", "decode")  # by which a model is used
OF_BLOCKS = ("prefill", "step", "inverse")  # by which a model uses its blocks, besides calling them


class Shards(ModelParallelStrategy):
    """Lightning's strategy for a model that is sharded over all devices.

    Its checkpoints are those of one device, in every part, and it goes on from those of any number of devices.
    """

    restore_checkpoint_after_setup = True  # when there are shards to load into
    lightning_restore_optimizer = True

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole moments on rank 0, by the numbers that the optimizer itself gives its parameters."""
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        options = states.StateDictOptions(full_state_dict=True, cpu_offload=True)
        found = states.get_optimizer_state_dict(self.model, optimizer, options=options).get("state", {})
        numbers = self._numbers(optimizer)
        return {
            "state": {number: found[name] for number, name in numbers.items() if name in found},
            "param_groups": optimizer.state_dict()["param_groups"],
        }

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        options = states.StateDictOptions(full_state_dict=True, strict=strict)
        states.set_model_state_dict(self.model, dict(checkpoint["state_dict"]), options=options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each device takes its part of the moments."""
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            names = self._numbers(optimizer)
            groups = [
                group | {"params": [names[n] for n in group["params"]]} for group in stored["param_groups"]
            ]
            content = {
                "state": {names[n]: state for n, state in stored["state"].items()},
                "param_groups": groups,
            }
            options = states.StateDictOptions(full_state_dict=True)
            states.set_optimizer_state_dict(self.model, optimizer, content, options=options)

    def _numbers(self, optimizer: Optimizer) -> dict[int, str]:
        """The name of each parameter by its number in the optimizer's own state_dict."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        return {number: names[parameter] for number, parameter in enumerate(parameters)}


def whole(x: Tensor) -> Tensor:
    """A tensor that may be sharded, gathered; all ranks have to ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def parted(x: Tensor, like: Tensor) -> Tensor:
    """A copy of a whole tensor, where another one is, and sharded as it is; all ranks have to ask."""
    x = x.detach().to(like.device, copy=True)
    return distribute_tensor(x, like.device_mesh, like.placements) if isinstance(like, DTensor) else x


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model in place over a mesh of devices: each of its `blocks` for itself, and what is left.

    A block whose weights are another's too is left to the whole. Between two calls there are shards alone.
    """
    blocks = list(getattr(model, "blocks", []))
    counts = dict.fromkeys(model.parameters(), 0)
    for block in blocks:
        for parameter in block.parameters():
            counts[parameter] += 1
    for block in blocks:
        if all(counts[parameter] == 1 for parameter in block.parameters()):
            fully_shard(block, mesh=mesh)
            name_methods(block, OF_BLOCKS)
    # else the whole model would stay gathered after a validation, where averages are exchanged with shards
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    name_methods(model, METHODS)


def name_methods(module: nn.Module, names: Sequence[str]) -> None:
    """Gather a sharded module's weights for these of its methods too, as far as it has them."""
    for name in names:
        if callable(getattr(module, name, None)):
            register_fsdp_forward_method(module, name)
