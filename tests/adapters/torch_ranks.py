"""Ranks of a torch process group for tests."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch

from procguard.adapters.torch_group import ProcessGroupGloo, TorchProcessGroup
from tests.adapters.ranks import GroupRanks


class Ranks(GroupRanks[TorchProcessGroup]):
    def make(self, timeout: timedelta) -> TorchProcessGroup:
        return ProcessGroupGloo(timeout)

    def full(self, size: int, value: float) -> Any:
        return torch.full((size,), value)
