"""The trainer's side. ``from procguard.client import Manager``.

Lazy, because the listener process lives in this folder too and must not load what only a trainer needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from procguard.client.manager import Manager, WorldSizeMode

__all__ = ["Manager", "WorldSizeMode"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from procguard.client import manager

        return getattr(manager, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
