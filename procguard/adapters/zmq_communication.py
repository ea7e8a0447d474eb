"""Workers' communication over ZeroMQ: the guard listens; workers beat, and do what it says.

Their end is ``procguard.client``.

To its workers the guard is a small lighthouse (the same transport, the same Hello and Heartbeat, see
``guard_messages``), so a worker's end is the same code, and what is known of one is known of the other: a
beat is one frame without an answer, a lost connection comes back by itself, and no frame of a peer can stop
the guard.

One thread owns the transport. Whoever gives a command leaves it in an outbox, wakes that thread, and waits
for the answer, which is told by its number.

Should that thread lose the transport, which only a bug or a full machine can do, no beat arrives any more.
Not knowing is no silence: from then on the adapter itself beats for those that were connected.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, NamedTuple

from procguard.adapters.base import Frame, HandshakeFailed, LighthouseTransport
from procguard.adapters.communication import CommandAnswer, CommunicationAdapter, HeartbeatCallback
from procguard.adapters.zmq import ZmqLighthouseTransport
from procguard.adapters.zmq_roll import Roll
from procguard.errors import ProtocolError, UsageError
from procguard.guard_messages import GUARD, Answer, Command, FromGuard
from procguard.messages import DATA_BYTES_MAX, Heartbeat, Hello, Settings, Welcome

DEFAULT_PORT = 29520
TURN_S_MAX = 1.0
FRAMES_COUNT_MAX = 1_000
COMMANDS_COUNT_MAX = 10_000
"""Given and not answered yet, by all threads together."""
CLOSE_TIMEOUT_S = 5.0
COMPLAINT_INTERVAL_S = 1.0
NAME_CHARACTERS_MAX = 255
LOST = "the connection to the workers is lost; the guard's log says why"

_log = logging.getLogger(__name__)


class _Waiting:
    """A command that is not answered yet."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.answer = CommandAnswer(False, error="the adapter was closed meanwhile")


class _Outgoing(NamedTuple):
    worker_id: str
    command: Command


class ZMQCommunicationAdapter(CommunicationAdapter):
    """The guard's end on the wire.

    Args:
        host: an address of this machine to listen on; loopback unless workers are elsewhere, for nobody is
            asked who he is.
        port_base: where the workers connect; the port after it is taken too. 0: the kernel chooses both, and
            then workers that outlive the guard do not find the next one.
        timeout: milliseconds that a command may take.
        heartbeat_interval_s: how often the workers are told to beat.
        heartbeat_timeout_s: after what silence they count as hung; told to them, judged elsewhere.
        open_transport: opens the listening end.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port_base: int = DEFAULT_PORT,
        timeout: int = 5000,
        *,
        heartbeat_interval_s: float = 1.0,
        heartbeat_timeout_s: float = 10.0,
        open_transport: Callable[[str, int], LighthouseTransport] = ZmqLighthouseTransport,
    ) -> None:
        self._host = host
        self._port_base = port_base
        self._timeout_s = timeout / 1000
        self._settings = Settings(
            heartbeat_interval_s, heartbeat_timeout_s, heartbeat_timeout_s, heartbeat_timeout_s, 0.0
        )
        self._open_transport = open_transport
        self._lock = threading.Lock()
        self._registered: set[str] = set()
        self._roll: Roll | None = None
        self._transport: LighthouseTransport | None = None
        self._thread: threading.Thread | None = None
        self._closing = False
        self._ended = threading.Event()
        """Set by ``close``, for the thread that has lost its transport; each thread has its own."""
        self._unheard: set[str] = set()
        """Workers that were connected when the transport was lost, and have not been started again since."""
        self._address = ""
        self._heartbeat: HeartbeatCallback | None = None
        self._outbox: deque[_Outgoing] = deque()
        self._waiting: dict[int, _Waiting] = {}
        # Another guard's commands, given before it ended, may be answered to this one: not under our numbers.
        self._numbers = count(int.from_bytes(os.urandom(6), "big"))
        self._complained_at = -COMPLAINT_INTERVAL_S

    # --- the guard's calls --------------------------------------------------------------------------

    def initialize(self) -> None:
        with self._lock:
            if self._transport is not None:
                return
            try:
                transport = self._open_transport(self._host, self._port_base)
            except UsageError as error:
                where = f"host {self._host!r}, port_base {self._port_base}"
                remedy = (
                    "another guard, perhaps: stop it, or choose another port_base (it takes the next one too)"
                )
                raise UsageError(f"communication.adapter_config: {where}: {error}; {remedy}") from None
            self._roll = Roll(time.time_ns() // 1_000_000, transport.notice_port, self._settings)
            for worker_id in self._registered:
                self._roll.register(worker_id)
            self._ended.set()  # one that has lost its transport is replaced
            self._ended = threading.Event()
            self._unheard.clear()
            self._transport, self._closing = transport, False
            self._address = self._address_of(transport.port)
            self._thread = threading.Thread(
                target=self._run,
                args=(transport, self._roll, self._ended),
                name="procguard-workers",
                daemon=True,
            )
            self._thread.start()

    def close(self) -> None:
        with self._lock:
            transport, thread = self._transport, self._thread
            self._closing = True
            self._ended.set()
            if transport is not None:
                transport.wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_TIMEOUT_S)

    def register_worker(self, worker_id: str) -> None:
        if not isinstance(worker_id, str) or not 1 <= len(worker_id) <= NAME_CHARACTERS_MAX:
            raise UsageError(f"worker_id is {worker_id!r}; write 1 to {NAME_CHARACTERS_MAX} characters")
        with self._lock:
            self._registered.add(worker_id)
            self._unheard.discard(worker_id)
            if self._roll is not None:
                self._roll.register(worker_id)

    def unregister_worker(self, worker_id: str) -> None:
        with self._lock:
            self._registered.discard(worker_id)
            self._unheard.discard(worker_id)
            if self._roll is not None:
                self._roll.unregister(worker_id)

    def request(
        self,
        worker_id: str,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> CommandAnswer:
        if threading.current_thread() is self._thread:
            raise UsageError("a heartbeat callback cannot give commands: use another thread")
        encoded = _encoded(command, arguments)
        waiting, number = _Waiting(), next(self._numbers)
        with self._lock:
            if (refusal := self._why_not(worker_id)) or self._transport is None:
                return CommandAnswer(False, error=refusal)
            self._waiting[number] = waiting
            self._outbox.append(_Outgoing(worker_id, Command(number, command, encoded)))
            self._transport.wake()
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        answered = waiting.done.wait(timeout_s)
        with self._lock:
            self._waiting.pop(number, None)
        if not answered:
            return CommandAnswer(False, error=f"worker {worker_id!r} did not answer within {timeout_s:g} s")
        return waiting.answer

    def send_heartbeat(self, worker_id: str) -> bool:
        with self._lock:
            if self._thread is None or self._closing or worker_id not in self._registered:
                return False
        self._tell(worker_id)
        return True

    def set_heartbeat_callback(self, callback: HeartbeatCallback | None) -> None:
        self._heartbeat = callback

    def connected_workers(self) -> list[str]:
        with self._lock:
            return self._roll.connected() if self._roll is not None and not self._closing else []

    @property
    def address(self) -> str:
        """Where workers find this, as ``host:port``; known once initialized."""
        assert self._address, "initialize() opens the port"
        return self._address

    def _address_of(self, port: int) -> str:
        host = "127.0.0.1" if self._host in ("0.0.0.0", "*") else "::1" if self._host == "::" else self._host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def environment(self, worker_id: str) -> dict[str, str]:
        return {"PROCGUARD_GUARD": self.address, "PROCGUARD_WORKER_ID": worker_id}

    def _why_not(self, worker_id: str) -> str:
        """Why a command cannot be given at all; empty if it can."""
        if self._closing:
            return "the adapter is closed"
        if self._transport is None or self._roll is None:
            return LOST if self._thread else "the adapter is closed"
        if not self._roll.is_registered(worker_id):
            return f"no worker {worker_id!r} is registered"
        if self._roll.peer_of(worker_id) is None:
            return f"worker {worker_id!r} has not connected; it needs procguard.client's beat() or Heart"
        if len(self._waiting) >= COMMANDS_COUNT_MAX:
            return f"{COMMANDS_COUNT_MAX} commands wait for their answers already"
        return ""

    # --- the thread ---------------------------------------------------------------------------------

    def _run(self, transport: LighthouseTransport, roll: Roll, ended: threading.Event) -> None:
        connected: list[str] = []
        try:
            while not self._closing:
                self._turn(transport, roll)
        except Exception:  # noqa: BLE001  # a broken transport: the guard goes on without it, and says so
            _log.exception("The connection to the workers is lost: no commands, and silence is not noticed")
            with self._lock:
                connected = roll.connected()
        with self._lock:
            self._unheard = set(connected)
            self._transport = self._roll = None
            for waiting in self._waiting.values():
                if not self._closing:
                    waiting.answer = CommandAnswer(False, error=LOST)
                waiting.done.set()
            self._outbox.clear()
        transport.close()
        while connected and not ended.wait(TURN_S_MAX):
            with self._lock:
                unheard = sorted(self._unheard)
            for worker_id in unheard:
                self._tell(worker_id)

    def _turn(self, transport: LighthouseTransport, roll: Roll) -> None:
        transport.wait(TURN_S_MAX)
        self._send_outbox(transport, roll)
        for inbound in transport.drain(FRAMES_COUNT_MAX):
            if isinstance(inbound, Frame):
                self._receive(transport, roll, inbound)
            elif isinstance(inbound, HandshakeFailed):
                self._complain(inbound.text)

    def _send_outbox(self, transport: LighthouseTransport, roll: Roll) -> None:
        while True:
            with self._lock:
                if not self._outbox:
                    return
                outgoing = self._outbox.popleft()
                peer = roll.peer_of(outgoing.worker_id)
            if peer is None or not transport.send(peer, GUARD.encode(outgoing.command)):
                error = f"worker {outgoing.worker_id!r} is not connected any more"
                self._answered(outgoing.command.number, CommandAnswer(False, error=error))

    def _receive(self, transport: LighthouseTransport, roll: Roll, frame: Frame) -> None:
        try:
            message = GUARD.decode(frame.payload)
        except ProtocolError as error:
            self._complain(f"a frame was dropped: {error}")
            return
        reply: FromGuard | None = None
        beats = None
        with self._lock:
            if isinstance(message, Heartbeat):
                known = roll.heartbeat(frame.peer, message)
                beats, reply = (known, None) if isinstance(known, str) else (None, known)
            elif isinstance(message, Hello):
                reply = roll.hello(frame.peer, message)
                beats = message.replica_id if isinstance(reply, Welcome) else None
        if reply is not None:
            transport.send(frame.peer, GUARD.encode(reply))
        if beats is not None:
            self._tell(beats)
        if isinstance(message, Answer):
            self._answered(message.number, _decoded(message))

    def _answered(self, number: int, answer: CommandAnswer) -> None:
        with self._lock:
            waiting = self._waiting.get(number)
        if waiting is not None and not waiting.done.is_set():
            waiting.answer = answer
            waiting.done.set()

    def _tell(self, worker_id: str) -> None:
        callback = self._heartbeat
        try:
            if callback is not None:
                callback(worker_id)
        except Exception:  # noqa: BLE001  # the guard's own; the log has it with its traceback
            _log.exception("The heartbeat callback failed for worker %s", worker_id)

    def _complain(self, text: str) -> None:
        now = time.monotonic()
        if now - self._complained_at >= COMPLAINT_INTERVAL_S:
            self._complained_at = now
            _log.warning("At the workers' port: %s", text)


def _encoded(command: str, arguments: Mapping[str, Any] | None) -> bytes:
    if not isinstance(command, str) or not 1 <= len(command) <= NAME_CHARACTERS_MAX:
        raise UsageError(f"command is {command!r}; give it a name of 1 to {NAME_CHARACTERS_MAX} characters")
    try:
        encoded = json.dumps(dict(arguments or {}), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the arguments of {command!r} cannot be sent ({error}); use JSON's types") from None
    if len(encoded) > DATA_BYTES_MAX:
        raise UsageError(
            f"the arguments of {command!r} are {len(encoded)} bytes long; {DATA_BYTES_MAX} can be sent: "
            "write them to a file and name that"
        )
    return encoded


def _decoded(answer: Answer) -> CommandAnswer:
    if not answer.ok:
        return CommandAnswer(False, error=answer.error or "the worker gave no reason")
    try:
        return CommandAnswer(True, json.loads(answer.result))
    except (ValueError, RecursionError):
        return CommandAnswer(False, error="the worker's answer is no JSON")
