"""What one all-reduce carries: private copies of the caller's tensors, a flat one for each dtype and device.

Private, because a backend may work on them long after the caller has given the operation up. Flat, because a
list of small tensors would otherwise be as many operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed import ReduceOp

from procguard.errors import UsageError

OPS = {"sum": ReduceOp.SUM, "avg": ReduceOp.SUM, "max": ReduceOp.MAX, "min": ReduceOp.MIN}
"""Averages are sums that are divided here: Gloo knows none."""


class Payload:
    """The operands of one all-reduce.

    Raises:
        UsageError: one of ``buffers`` is no dense tensor of a dtype in ``dtypes`` on a ``device_type``, or
            ``op`` is not one of ``OPS``.
    """

    def __init__(
        self, buffers: Sequence[Any], op: str, *, device_type: str, dtypes: Sequence[torch.dtype], ranks: int
    ) -> None:
        if op not in OPS:
            raise UsageError(f"op {op!r} is not known; use one of {', '.join(OPS)}")
        for place, buffer in enumerate(buffers):
            _check(place, buffer, device_type, dtypes)
        self._buffers = list(buffers)
        self._divisor = ranks if op == "avg" else 1
        self.op = OPS[op]
        groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for place, buffer in enumerate(buffers):
            if buffer.numel():
                groups.setdefault((buffer.dtype, buffer.device), []).append(place)
        self._groups = list(groups.values())
        with torch.no_grad():
            self.flats = [self._flat(places) for places in self._groups]

    def _flat(self, places: list[int]) -> torch.Tensor:
        if len(places) == 1:
            flat: torch.Tensor = self._buffers[places[0]].detach().reshape(-1).clone()
            return flat
        return torch.cat([self._buffers[place].detach().reshape(-1) for place in places])

    def deliver(self) -> list[Any]:
        """Write the reduced values into the caller's tensors, and return those."""
        with torch.no_grad():
            for places, flat in zip(self._groups, self.flats, strict=True):
                self._divide(flat)
                parts = flat.split([self._buffers[place].numel() for place in places])
                for place, part in zip(places, parts, strict=True):
                    target = self._buffers[place].detach()
                    target.copy_(part.view(target.shape))
                if flat.is_cuda:  # who is told that it is done may read it in any stream
                    torch.cuda.current_stream(flat.device).synchronize()
        return self._buffers

    def _divide(self, flat: torch.Tensor) -> None:
        if self._divisor == 1:
            return
        if flat.is_floating_point() or flat.is_complex():
            flat.div_(self._divisor)
        else:
            flat.div_(self._divisor, rounding_mode="floor")


def _check(place: int, buffer: Any, device_type: str, dtypes: Sequence[torch.dtype]) -> None:
    what = f"buffer {place}"
    if not isinstance(buffer, torch.Tensor):
        raise UsageError(f"{what} is a {type(buffer).__name__}; pass torch tensors")
    if buffer.layout is not torch.strided:
        raise UsageError(f"{what} has layout {buffer.layout}; pass dense tensors")
    if buffer.device.type != device_type:
        raise UsageError(
            f"{what} is on {buffer.device}, and this process group reduces on {device_type}; move it there, "
            "or use ProcessGroupGloo for cpu and ProcessGroupNCCL for cuda"
        )
    if buffer.dtype not in dtypes:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise UsageError(f"{what} has dtype {buffer.dtype}, which cannot be reduced; use one of {known}")
