"""What torchft's callers catch: ``TimeoutError`` when time is over, ``RuntimeError`` for everything else.

ProcGuard's own tree is richer; its message is kept, and the original is the cause. What torchft says of a
timeout stands behind ours, for those who look for it in the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from procguard.errors import ProcGuardError

TIMEOUT_WORDS = 'status: Cancelled, message: "Timeout expired"'


@contextmanager
def as_torchft_raises() -> Iterator[None]:
    """Turn ProcGuard's errors into those that torchft's classes raise."""
    try:
        yield
    except ProcGuardError as error:
        if isinstance(error, TimeoutError):
            raise TimeoutError(f"{error} ({TIMEOUT_WORDS})") from error
        raise RuntimeError(str(error)) from error


def seconds(name: str, span: object) -> float:
    """A ``timedelta`` in seconds; ``TypeError`` for anything else, as in torchft."""
    if not isinstance(span, timedelta):
        raise TypeError(f"{name} is {span!r}; give a datetime.timedelta, such as timedelta(seconds=5)")
    return span.total_seconds()
