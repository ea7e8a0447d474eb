"""What healing carries over: the train loop's parts, and how far this replica is.

The quorum thread reads it to let others heal, the train loop changes it; ``disallow_read`` keeps them apart
where the loop asks for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from procguard.errors import CheckpointError, UsageError

DEFAULT_PART = "default"


class StateFns(NamedTuple):
    """How to take over and give out one part of the train loop's state."""

    load: Callable[[Any], None]
    save: Callable[[], Any]


@dataclass(frozen=True)
class Progress:
    """How far a replica is."""

    step: int = 0
    """Steps committed, those healed over included."""
    committed_in: int = 0
    """Packed id of the quorum in which the last one was."""
    batches: int = 0
    """Batches that went into them, over all replicas."""
    commit_failures: int = 0
    """Steps in a row that did not commit."""


class TrainState:
    """All parts of one replica's state. ``progress`` may be read from any thread."""

    def __init__(self) -> None:
        self.progress = Progress()
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._is_disallowed = False
        self._parts: dict[str, StateFns] = {}

    def register(self, key: str, load: Callable[[Any], None], save: Callable[[], Any]) -> None:
        """Add or replace a part. Raises ``UsageError`` for what cannot be called."""
        for what, function in (("load_state_dict", load), ("state_dict", save)):
            if not callable(function):
                raise UsageError(f"{what} of {key!r} is {function!r}; give a function")
        self._parts[key] = StateFns(load, save)

    def commit(self, quorum_id: int, batches: int) -> None:
        """A step was committed in that quorum, out of so many batches."""
        with self._lock:
            old = self.progress
            self.progress = Progress(old.step + 1, quorum_id, old.batches + batches)

    def fail(self) -> None:
        """A step was not committed."""
        with self._lock:
            self.progress = replace(self.progress, commit_failures=self.progress.commit_failures + 1)

    def save_progress(self) -> dict[str, int]:
        """The Manager's own part, as users keep it in their checkpoints."""
        progress = self.progress
        return {
            "step": progress.step,
            "batches_committed": progress.batches,
            "committed_in": progress.committed_in,
        }

    def load_progress(self, saved: dict[str, int]) -> None:
        """Go on from there. Raises ``UsageError`` when it is not what ``save_progress`` gave."""
        try:
            step, batches = int(saved["step"]), int(saved["batches_committed"])
            committed_in = int(saved.get("committed_in", 0))
            if min(step, batches, committed_in) < 0:
                raise ValueError("negative")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"not a state dict of a Manager: {error!r} in {saved!r:.200}") from None
        with self._lock:
            self.progress = Progress(step, committed_in, batches)

    def save(self, timeout_s: float = -1) -> dict[str, Any]:
        """Everything that a replica needs to heal from this one.

        Raises:
            CheckpointError: it may not be read, for ``timeout_s`` by now (negative: waits for ever).
        """
        if not self._reading.acquire(timeout=timeout_s):
            raise CheckpointError(
                f"the train loop did not allow the state to be read for {timeout_s:g} s; each "
                "disallow_state_dict_read needs its allow_state_dict_read before the next collective"
            )
        try:
            parts = {key: fns.save() for key, fns in self._parts.items()}
        finally:
            self._reading.release()
        return {"procguard": self.save_progress(), "user": parts}

    def load(self, state: dict[str, Any]) -> None:
        """Take over another replica's: the parts first, then how far it is.

        Raises:
            CheckpointError: a part is missing here, or would not take it over. Some parts may be the other's
                by then, so this replica counts as never having trained, and heals whole the next time.
        """
        try:
            for key, part in state["user"].items():
                self._parts[key].load(part)
            self.load_progress(state["procguard"])
        except Exception as error:
            with self._lock:
                self.progress = Progress(commit_failures=self.progress.commit_failures)
            raise CheckpointError(f"the fetched state could not be loaded: {error!r}") from error

    def disallow_read(self) -> None:
        """Return once nobody is reading, and keep the next ``save`` waiting. Saying it twice is as once."""
        if not self._is_disallowed:
            self._reading.acquire()
            self._is_disallowed = True

    def allow_read(self) -> None:
        """Let it go on."""
        if self._is_disallowed:
            self._is_disallowed = False
            self._reading.release()
