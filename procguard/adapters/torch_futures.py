"""A future as torch's users know it, of one that the Manager gives.

The Manager's futures never fail, bound each wait, and show the lighthouse that the trainer waits in a
collective rather than computes. ``torch.futures.Future`` knows nothing of that, so this one hands its own
``wait`` on to the Manager's; all else, ``then`` and ``value`` and ``torch.futures.collect_all``, is torch's.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import torch


class ManagedFuture(torch.futures.Future[Any]):
    """Settled as soon as ``awaited`` is."""

    def __init__(self, awaited: Future[Any], devices: list[torch.device]) -> None:
        super().__init__(devices=devices)
        self._awaited = awaited
        awaited.add_done_callback(self._settle)

    def wait(self) -> Any:
        """The value; waits in the collective, as far as the Manager is concerned, and no longer than it."""
        with suppress(Exception):  # the same error comes out of torch's own wait
            self._awaited.result()
        return super().wait()

    def _settle(self, awaited: Future[Any]) -> None:
        error = awaited.exception()
        if error is None:
            self.set_result(awaited.result())
        else:
            self.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))


def torch_future(awaited: Future[Any], value: Any) -> ManagedFuture:
    """A future of torch's kind.

    Args:
        value: what it will hold, or something like it: torch wants to know the CUDA devices beforehand.
    """
    return ManagedFuture(awaited, sorted(_cuda_devices(value), key=str))


def _cuda_devices(value: Any) -> set[torch.device]:
    if isinstance(value, torch.Tensor):
        return {value.device} if value.is_cuda else set()
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return set()
    many: Iterable[Any] = value
    return {device for one in many for device in _cuda_devices(one)}
