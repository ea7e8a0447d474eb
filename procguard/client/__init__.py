"""The trainer's side, ``from procguard.client import Manager``, and a guard's worker's, ``import beat``.

Lazy, because the listener process lives in this folder too and must not load what only a trainer needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from procguard.client.heart import Heart, beat
    from procguard.client.manager import Manager, WorldSizeMode

__all__ = ["Heart", "Manager", "WorldSizeMode", "beat"]

_ROOMS = {"Heart": "heart", "Manager": "manager", "WorldSizeMode": "manager", "beat": "heart"}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"procguard.client.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
