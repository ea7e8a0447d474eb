"""How the guard and its workers talk: the interface that every adapter of ``communication.adapter_type``
keeps.

Three come with ProcGuard: ``MockCommunicationAdapter`` (in memory), ``ZMQCommunicationAdapter`` (workers on
the wire) and ``LighthouseAdapter`` (the workers are members of a lighthouse). One of your own derives from
``CommunicationAdapter`` and passes ``tests/adapters/test_communication_contract.py``, where each promise
below is a test.

What every adapter promises:

- A side that cannot be heard is not silent: while an adapter has no way to know whether a worker beats, it
  beats for each that was well when it last knew. Otherwise its own trouble would end healthy workers.
- Nothing here raises because of what a worker does or does not do; what cannot be done is False, or an answer
  that is not ``ok`` and says why. ``UsageError`` is for what the caller can put right.
- No call waits longer than the adapter's timeout, or the one it is given.
- Callbacks are called on a thread of the adapter, or of whoever calls ``send_heartbeat``. They should return
  quickly, and may raise: that is logged. They must not call ``request`` or ``send_command``, which would wait
  for the thread that they hold up.
- A worker that is not registered is not listened to.
- Commands to one worker arrive in the order in which they were given, each at most once.
- All of it may be called from any thread. ``initialize`` and ``close`` can be said again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

HeartbeatCallback = Callable[[str], None]
"""Gets the worker_id of each beat."""
FailureCallback = Callable[["Sequence[WorkerFailure]"], None]
CommandCallback = Callable[[str, Mapping[str, Any]], Any]
"""Gets a command and its arguments; returns what is answered, or raises."""


class CommandAnswer(NamedTuple):
    """What came of a command."""

    ok: bool
    """The worker has carried it out."""
    result: Any = None
    """What the worker's function returned; JSON's types."""
    error: str = ""
    """Why not, for people; empty when ``ok``."""


class WorkerFailure(NamedTuple):
    """A failure that the other side told of, and that the guard could not have seen itself."""

    worker_id: str
    reason: str
    """For people, such as "heartbeat timed out"."""
    pid: int
    """Of the process that failed, on ``host``; 0: unknown. A worker that has another one by now is fine."""
    host: str


class CommunicationAdapter(ABC):
    """The guard's end; ``with`` initializes and closes it."""

    @abstractmethod
    def initialize(self) -> None:
        """Begin: open what is to be opened.

        Raises:
            UsageError: that cannot be, such as a port that is in use; names the key and the remedy.
        """

    @abstractmethod
    def close(self) -> None:
        """End, within the timeout. Every call that waits is answered; later ones are False."""

    @abstractmethod
    def register_worker(self, worker_id: str) -> None:
        """Listen to this worker from now on. Again, after a restart of it: whoever spoke for it before is
        forgotten.

        The guard calls it at each start, on the thread that watches its processes: it must return at once, so
        it may take a lock that is held for moments, and wait for nothing else."""

    @abstractmethod
    def unregister_worker(self, worker_id: str) -> None:
        """Do not listen to it any more; one that is not registered is no error."""

    @abstractmethod
    def request(
        self,
        worker_id: str,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> CommandAnswer:
        """Have a worker do something, and wait for its answer.

        Args:
            command: a name that the worker knows; what it means is between the two.
            arguments: of JSON's types.
            timeout_s: None: the adapter's own.

        Raises:
            UsageError: the arguments cannot be sent, or this is called from a callback.
        """

    @abstractmethod
    def send_heartbeat(self, worker_id: str) -> bool:
        """Beat for a worker that cannot itself, as if it had: for code in the guard's process that knows the
        worker to be well. False when it is not registered or the adapter is closed."""

    @abstractmethod
    def set_heartbeat_callback(self, callback: HeartbeatCallback | None) -> None:
        """Who is told of each beat; ``ProcessMonitor.heartbeat`` usually."""

    @abstractmethod
    def connected_workers(self) -> list[str]:
        """Registered workers that could be given a command now, sorted."""

    # --- what most adapters need not change ---

    def send_command(self, worker_id: str, command: str, **arguments: Any) -> bool:
        """Have a worker do something; True once it has. ``request`` says more."""
        return self.request(worker_id, command, arguments).ok

    def environment(self, worker_id: str) -> dict[str, str]:
        """The variables with which a worker's process finds its way back here."""
        return {}

    def set_failure_callback(self, callback: FailureCallback | None) -> None:  # noqa: B027  # see below
        """Who is told of failures that the other side knows of; most adapters know of none."""

    def wait_ready(self, worker_ids: Sequence[str], timeout_s: float) -> bool:
        """Wait until these workers, just started, do their work together. Where nobody can tell, they do."""
        return True

    def __enter__(self) -> CommunicationAdapter:
        self.initialize()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class CheckpointAdapter(ABC):
    """What is to be done around a stop and a restart of workers, such as saving and restoring their state.

    Called by the recovery chain, on its thread, while other workers may be running. An exception is logged
    and does not hold up the chain; a call that does not return does, for no longer than ``recovery_timeout``.
    """

    @abstractmethod
    def before_stop(self, worker_ids: Sequence[str]) -> None:
        """These workers are about to be stopped. Some of them may be dead already."""

    @abstractmethod
    def after_restart(self, worker_ids: Sequence[str]) -> None:
        """These workers run again."""
