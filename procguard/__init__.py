"""ProcGuard keeps distributed training alive.

Importing the package imports nothing else, neither its own modules nor third parties: the listener that
watches a trainer pays for each import in start-up time and memory, and so does every command's ``--help``.
What the package offers is therefore loaded when it is first asked for, in ``__getattr__``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from procguard.supervisor.guard import ProcGuard

__all__ = ["ProcGuard"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("procguard")
    if name == "ProcGuard":
        from procguard.supervisor.guard import ProcGuard

        return ProcGuard
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
