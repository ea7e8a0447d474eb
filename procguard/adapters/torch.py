"""ProcGuard for PyTorch: what a train loop of torch needs, by one import.

::

    from procguard.adapters.torch import DistributedDataParallel, Manager, Optimizer, ProcessGroupGloo

    manager = Manager(pg=ProcessGroupGloo(), load_state_dict=load, state_dict=save, min_replica_size=1)
    model = DistributedDataParallel(manager, model)
    optimizer = Optimizer(manager, torch.optim.AdamW(model.parameters()))
    for images, labels in batches:
        optimizer.zero_grad()                                   # asks who is alive
        cross_entropy(model(images), labels).backward()         # averages; ends at once if a peer dies
        optimizer.step()                                        # on all replicas, or on none

The ``Manager`` is the one of ``procguard.client``: with a process group of this module its works give out
futures of ``torch.futures``. Nothing else of ProcGuard imports torch, which the extra ``procguard[torch]``
installs.
"""

from __future__ import annotations

try:
    import torch  # noqa: F401  # first, so that its absence is said in words
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "procguard.adapters.torch needs PyTorch, which is not installed; "
        "install it, or ProcGuard with it: pip install 'procguard[torch]'",
        name="torch",
    ) from None

from procguard.adapters.torch_ddp import DistributedDataParallel
from procguard.adapters.torch_group import ProcessGroupGloo, ProcessGroupNCCL
from procguard.adapters.torch_optimizer import Optimizer
from procguard.adapters.torch_sampler import DistributedSampler
from procguard.client.manager import Manager, WorldSizeMode

__all__ = [
    "DistributedDataParallel",
    "DistributedSampler",
    "Manager",
    "Optimizer",
    "OptimizerWrapper",
    "ProcessGroupGloo",
    "ProcessGroupNCCL",
    "WorldSizeMode",
]

OptimizerWrapper = Optimizer
"""By the name that torchft gives it."""
