"""``DistributedSampler``: each rank of each replica group sees a share of its own of the training set.

The shares are those of the greatest number of groups, not of the present one: a share that changed with each
quorum would show samples twice. While a group is away, its share is not seen; it is made up for as the epochs
go by, when the shares are shuffled anew.
"""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist
from torch.utils import data
from torch.utils.data.distributed import DistributedSampler as TorchSampler

from procguard.errors import UsageError


class DistributedSampler(TorchSampler):
    """A sampler over the shares of all ranks of all replica groups.

    Args:
        dataset: all samples; the same on all ranks.
        replica_rank: which replica group this is, from 0: REPLICA_GROUP_ID.
        num_replica_groups: the greatest number of groups: NUM_REPLICA_GROUPS.
        group_rank: of this process within its group; None: RANK, or 0.
        num_replicas: ranks of a group; None: WORLD_SIZE, or 1.
        kwargs: torch's ``shuffle``, ``seed`` and ``drop_last``.

    Raises:
        UsageError: ranks that are not below their count.
    """

    def __init__(
        self,
        dataset: data.Dataset[Any],
        replica_rank: int,
        num_replica_groups: int,
        group_rank: int | None = None,
        num_replicas: int | None = None,
        **kwargs: Any,
    ) -> None:
        rank, size = _group(group_rank, num_replicas)
        _check("replica_rank", replica_rank, "num_replica_groups", num_replica_groups)
        _check("group_rank", rank, "num_replicas", size)
        self.global_rank = rank + size * replica_rank
        self.global_world_size = size * num_replica_groups
        super().__init__(dataset, num_replicas=self.global_world_size, rank=self.global_rank, **kwargs)


def _group(rank: int | None, size: int | None) -> tuple[int, int]:
    """This process's place in its group: as told, as torch.distributed says, or as torchrun does."""
    is_known = dist.is_available() and dist.is_initialized()
    if rank is None:
        rank = dist.get_rank() if is_known else int(os.environ.get("RANK", "0"))
    if size is None:
        size = dist.get_world_size() if is_known else int(os.environ.get("WORLD_SIZE", "1"))
    return rank, size


def _check(what: str, rank: int, counted: str, count: int) -> None:
    if not 0 <= rank < count:
        raise UsageError(f"{what} {rank} of {counted} {count}: ranks count from 0 and are below their count")
