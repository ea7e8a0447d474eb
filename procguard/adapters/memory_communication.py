"""Workers' communication within one process: ``adapter_type: mock``, the default.

For guards whose workers only have to live, and for tests. Nothing is sent anywhere: a worker here is whatever
``set_command_callback`` was given for it, and it beats when ``send_heartbeat`` is called. Commands for one
that was given nothing are carried out by doing nothing. What was sent is kept in ``sent``.

Passes the contract of the real one, on the thread of whoever calls: there is no other.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from procguard.adapters.communication import (
    CommandAnswer,
    CommandCallback,
    CommunicationAdapter,
    HeartbeatCallback,
)
from procguard.errors import UsageError

SENT_KEPT_MAX = 1000

_log = logging.getLogger(__name__)


class Sent(NamedTuple):
    """A command as it was given."""

    worker_id: str
    command: str
    arguments: Mapping[str, Any]


class MockCommunicationAdapter(CommunicationAdapter):
    """In memory.

    Args:
        host, port_base, timeout: taken, so that a file can change between ``mock`` and ``zmq``, and not used.
    """

    def __init__(self, host: str = "", port_base: int = 0, timeout: int = 0) -> None:
        self.sent: deque[Sent] = deque(maxlen=SENT_KEPT_MAX)
        """The last commands, oldest first."""
        self._lock = threading.Lock()
        self._open = False
        self._registered: set[str] = set()
        self._callbacks: dict[str, CommandCallback] = {}
        self._heartbeat: HeartbeatCallback | None = None
        self._in_callback = threading.local()

    def initialize(self) -> None:
        self._open = True

    def close(self) -> None:
        self._open = False

    def register_worker(self, worker_id: str) -> None:
        with self._lock:
            self._registered.add(worker_id)

    def unregister_worker(self, worker_id: str) -> None:
        with self._lock:
            self._registered.discard(worker_id)

    def set_command_callback(self, worker_id: str, callback: CommandCallback | None) -> None:
        """What this worker does with a command: its result is the answer, its exception a refusal."""
        with self._lock:
            if callback is None:
                self._callbacks.pop(worker_id, None)
            else:
                self._callbacks[worker_id] = callback

    def request(
        self,
        worker_id: str,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> CommandAnswer:
        if getattr(self._in_callback, "now", False):
            raise UsageError("a heartbeat callback cannot give commands: use another thread")
        given = as_sent(command, arguments)
        with self._lock:
            if not self._open:
                return CommandAnswer(False, error="the adapter is closed")
            if worker_id not in self._registered:
                return CommandAnswer(False, error=f"no worker {worker_id!r} is registered")
            self.sent.append(Sent(worker_id, command, given))
            callback = self._callbacks.get(worker_id)
        if callback is None:
            return CommandAnswer(True)
        try:
            return CommandAnswer(True, json.loads(json.dumps(callback(command, given))))
        except Exception as error:  # noqa: BLE001  # the worker's own; it goes to whoever gave the command
            return CommandAnswer(False, error=f"{type(error).__name__}: {error}")

    def send_heartbeat(self, worker_id: str) -> bool:
        with self._lock:
            if not self._open or worker_id not in self._registered:
                return False
            callback = self._heartbeat
        self._in_callback.now = True
        try:
            if callback is not None:
                callback(worker_id)
        except Exception:  # noqa: BLE001  # the guard's own; the log has it with its traceback
            _log.exception("The heartbeat callback failed for worker %s", worker_id)
        finally:
            self._in_callback.now = False
        return True

    def set_heartbeat_callback(self, callback: HeartbeatCallback | None) -> None:
        self._heartbeat = callback

    def connected_workers(self) -> list[str]:
        with self._lock:
            return sorted(self._registered) if self._open else []


def as_sent(command: str, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of the arguments, as they would arrive. Raises ``UsageError``."""
    if not isinstance(command, str) or not command:
        raise UsageError(f"command is {command!r}; give it a name")
    try:
        copy = json.loads(json.dumps(dict(arguments or {}), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the arguments of {command!r} cannot be sent ({error}); use JSON's types") from None
    assert isinstance(copy, dict)
    return copy
