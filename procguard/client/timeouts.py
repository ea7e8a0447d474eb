"""Timeouts as callers give them: a ``timedelta``, or a clear word before anything has begun."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from procguard.errors import UsageError


def a_timedelta(what: str, value: Any) -> timedelta:
    """Raises ``UsageError`` for seconds given as a number, which say no unit."""
    if not isinstance(value, timedelta):
        raise UsageError(f"{what} is {value!r}; give a timedelta, such as timedelta(seconds=60)")
    return value


def positive(what: str, value: Any) -> timedelta:
    """Raises ``UsageError`` unless it is a ``timedelta`` above 0."""
    if not isinstance(value, timedelta) or value <= timedelta(0):
        raise UsageError(f"{what} is {value!r}; give a timedelta above 0, such as timedelta(seconds=60)")
    return value


def positive_or(default: timedelta, what: str, value: Any) -> timedelta:
    """The default for None."""
    return default if value is None else positive(what, value)
