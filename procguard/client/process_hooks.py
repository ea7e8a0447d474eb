"""What a trainer's process does for its Managers at its end and at a fork: hooks of which there is one each.

An uncaught exception is announced on the link before it ends the process, so that the obituary can say which
it was. A forked child, such as a data loader, lets go of its parent's membership without a word.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

from procguard.client.membership import Membership

_members: weakref.WeakSet[Membership] = weakref.WeakSet()
_previous_hook: Callable[[type[BaseException], BaseException, TracebackType | None], Any] | None = None


def watch_over(membership: Membership) -> None:
    """Let the hooks serve this membership; the first one installs them."""
    global _previous_hook  # noqa: PLW0603  # a hook is the process's, so is what stood there before
    _members.add(membership)
    if _previous_hook is None:
        _previous_hook = sys.excepthook
        sys.excepthook = _say_last_words
        os.register_at_fork(after_in_child=_disown)


def forget(membership: Membership) -> None:
    """It has left."""
    _members.discard(membership)


def _say_last_words(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    assert _previous_hook is not None
    try:
        for membership in list(_members):
            membership.say_last_words(error)
    finally:
        _previous_hook(kind, error, traceback)


def _disown() -> None:
    for membership in list(_members):
        membership.disown()
    _members.clear()
