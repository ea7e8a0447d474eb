"""ProcGuard keeps distributed training alive.

Importing the package imports nothing else, neither its own modules nor third parties: the listener that
watches a trainer pays for each import in start-up time and memory, and so does every command's ``--help``.
What the package offers is therefore loaded when it is first asked for, in ``__getattr__``.
"""

from __future__ import annotations


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("procguard")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
