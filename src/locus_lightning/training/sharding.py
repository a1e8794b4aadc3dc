"""Weights in pieces: PyTorch's FSDP2 through Lightning's model-parallel strategy, and whole weights again where every process goes its own way.

A forward pass over sharded weights gathers them from all processes, layer by layer, so that all of them have to take the same passes. Training
does: a step has the same number of passes everywhere. Rollouts do not, because completions end at different times. While they are made, every
process holds the whole policy (:func:`gathered`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy, StrategyRegistry
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from locus_lightning.backbones.base import Backbone

NAME = "fsdp2"
"""What ``trainer.strategy`` is called in a configuration."""


class FSDP2Strategy(ModelParallelStrategy):
    """Every process holds a piece of each weight, of its gradient and of the optimiser's state (PyTorch's ``fully_shard``).

    Checkpoints are single files of whole weights, as those of every other strategy: they are validated and exported on one process.

    Args:
        timeout: How long processes wait for one another; null is 30 minutes.
    """

    def __init__(self, timeout: timedelta | None = None) -> None:
        more = {} if timeout is None else {"timeout": timeout}
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **more)  # type: ignore[arg-type]

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Weights are sharded when the model is configured, so that a checkpoint's can be put in place as everywhere else."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning reads the checkpoint, and this class puts it in place."""
        return True

    def setup_environment(self) -> None:
        """All processes share one copy of the weights."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """Weights are loaded onto the device, as with DDP, and cut into pieces there."""
        with torch.device(self.root_device), super().tensor_init_context(empty_init):
            yield

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Weights in pieces; :meth:`save_checkpoint` joins those that are kept."""
        return self.lightning_module.state_dict()  # type: ignore[union-attr]

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimiser's state in pieces."""
        return getattr(optimizer, "_optimizer", optimizer).state_dict()  # type: ignore[no-any-return]

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Join the pieces on the first process, which writes."""
        ParallelStrategy.save_checkpoint(self, _joined(checkpoint, self.is_global_zero), filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Every process maps the file into memory and reads of it what its pieces need."""
        return torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=weights_only is not False)  # type: ignore[no-any-return]

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Cut a checkpoint's weights into pieces."""
        own = dict(self.lightning_module.named_parameters())  # type: ignore[union-attr]
        with torch.no_grad():
            for name in own.keys() & checkpoint["state_dict"].keys():
                own[name].copy_(_piece(checkpoint["state_dict"][name], own[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Cut an optimiser's state into pieces."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            state = dict(saved["state"])
            for number, parameter in zip(numbers, parameters, strict=True):
                state[number] = {
                    key: _piece(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value
                    for key, value in state.get(number, {}).items()
                }
            optimizer.load_state_dict({**saved, "state": state})


if NAME not in StrategyRegistry:
    StrategyRegistry.register(NAME, FSDP2Strategy, description="weights in pieces (PyTorch's FSDP2)")


def _piece(value: Tensor, like: Any) -> Tensor:
    """This process's piece of a whole tensor, laid out as ``like``."""
    if not isinstance(like, DTensor):
        return value.to(like.device)
    return distribute_tensor(value.to(like.device, like.dtype), like.device_mesh, like.placements, src_data_rank=None)


def _joined(tree: Any, keep: bool) -> Any:
    """A tree of containers with whole tensors in the place of pieces, on the CPU; all processes have to call this, and only those that ``keep``
    hold the result."""
    if isinstance(tree, DTensor):
        whole = tree.full_tensor()
        return whole.cpu() if keep else None
    if isinstance(tree, dict):
        return {key: _joined(value, keep) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_joined(value, keep) for value in tree)
    return tree


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which processes may hold pieces, as a whole one; all of them have to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_piece(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard(backbone: Backbone, strategy: Any, mixed: bool) -> None:
    """Cut the weights of a loaded backbone, and of its reference copy, into pieces. Does nothing under another strategy, or a second time.

    Args:
        backbone: its parameters are replaced by pieces; optimisers are made afterwards.
        strategy: of the trainer.
        mixed: whether weights are gathered in bfloat16 (``trainer.precision: bf16-mixed`` with all weights trained).
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    if not isinstance(strategy, FSDP2Strategy):
        return
    # autocast casts what a layer is given
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if mixed else None, reduce_dtype=torch.float32 if mixed else None, cast_forward_inputs=False
    )
    models: list[Any] = backbone.shardable()
    for root, layers, stay_whole in models:
        if isinstance(root, FSDPModule):
            continue
        for module in (*layers, root):
            fully_shard(module, mesh=strategy.device_mesh["data_parallel"], mp_policy=policy, ignored_params=set(stay_whole))
        root.one_pass = lambda do: do()
        register_fsdp_forward_method(root, "one_pass")
        root.one_pass(lambda: None)  # the module that is called first becomes the root
        root.reshard()  # a checkpoint's weights may be put in place before the first pass
        root.set_reshard_after_forward(root is not models[0][0], recurse=False)
    backbone.in_pieces = True
    backbone.mark_embeddings()


@contextmanager
def gathered(backbone: Backbone) -> Iterator[None]:
    """While the context lasts, every process holds all weights of the policy, and no forward pass waits for another process. All of them have
    to enter and to leave it. It is nothing where weights are not in pieces, or within another one."""
    from torch.distributed.fsdp import FSDPModule

    root: Any = backbone.shardable()[0][0] if backbone.in_pieces else None
    if root is None or getattr(root, "gathered", False):
        yield
        return
    pieces = [module for module in root.modules() if isinstance(module, FSDPModule)]
    root.gathered = True
    for module in pieces:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in pieces:
            module.set_reshard_after_forward(module is not root, recurse=False)
            module.reshard()
        root.gathered = False


def as_one_pass(backbone: Backbone, do: Callable[[], Any]) -> Any:
    """What ``do`` gives, run as one pass of gathered weights: its many small passes then neither wait nor set anything up, so that they can be
    captured."""
    root: Any = backbone.shardable()[0][0] if backbone.in_pieces else None
    return root.one_pass(do) if getattr(root, "gathered", False) else do()


@contextmanager
def joined_for_saving(backbone: Backbone, keep: bool) -> Iterator[None]:
    """While the context lasts, ``save_pretrained`` of a process that keeps them writes whole weights. All processes have to enter it.

    With adapters only what was trained is joined, since nothing else is written.
    """
    if not backbone.in_pieces:
        yield
        return
    state = backbone.state_dict()
    if backbone.adapter_rank:
        state = {name: value for name, value in state.items() if name in backbone.saved_parameters()}
    backbone.whole_weights = _joined(state, keep)
    try:
        yield
    finally:
        backbone.whole_weights = None
