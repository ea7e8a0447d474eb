"""A worker beats to the guard that started it, and does what it is told.

One line in the worker's loop::

    from procguard.client import beat

    for batch in batches:
        beat()              # "I get on": from the first one on, silence is a hang
        train(batch)

Or, where there is no loop of one's own, a thread beats::

    from procguard.client import Heart

    with Heart(on_command=do):
        serve()

The difference matters. ``beat()`` says that the program has come to this line again, so a loop that hangs is
found out; it must come round within ``monitoring.heartbeat_timeout``. The thread says only that the process
and its interpreter live.

The guard is found by ``PROCGUARD_GUARD`` and ``PROCGUARD_WORKER_ID``, which it gives to each worker. Without
them there is no guard, and all of this does nothing: the same program runs alone. Nothing here waits for the
guard or fails for want of it; one that is started again is found again.

Commands are carried out where it can do no harm: within ``beat()``, a point that the program chose, on its
own thread; or beside the beating thread, one at a time, so that a long one is not taken for a hang.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from procguard.adapters.base import MemberTransport
from procguard.adapters.zmq import ZmqMemberTransport
from procguard.client.membership import TOKEN_BYTES, this_process
from procguard.client.pulse import Pulse, Refused
from procguard.env import Address, WorkerSettings, parse_address, parse_name
from procguard.errors import ProtocolError, UsageError
from procguard.guard_messages import GUARD, JOB, Answer, Command
from procguard.messages import DATA_BYTES_MAX, Hello

CommandFunction = Callable[[str, Mapping[str, Any]], Any]

LOOK_INTERVAL_S = 0.05
"""``beat()`` called more often than this returns at once: it may stand in a loop of microseconds."""
RECEIVE_MAX = 100
COMMANDS_WAITING_MAX = 16
ERROR_CHARACTERS_MAX = 1000
WAKES_MAX = 4096
JOIN_TIMEOUT_S = 2.0

_log = logging.getLogger(__name__)


def beat() -> bool:
    """Say to the guard that this process gets on; True if there is a guard.

    Measured on two cores: 0.7 us, and 0.2 ms when it looks for what the guard says, at most every 50 ms.
    Never waits. From any thread and any signal handler; each process beats for itself, also after a fork.

    Raises:
        ConfigError: the variables that say where the guard is cannot be read.
    """
    return _own_heart(os.getpid()).beat()


@lru_cache(maxsize=1)
def _own_heart(pid: int) -> Heart:
    return Heart()


class Heart:
    """The connection of one process to its guard.

    Args:
        on_command: called with each command and its arguments; what it returns (JSON's types) is the answer,
            what it raises a refusal. None: every command is refused.
        guard: ``host:port``; None: ``PROCGUARD_GUARD``.
        worker_id: None: ``PROCGUARD_WORKER_ID``.

    Raises:
        UsageError: an address or a name that cannot be one; ``ConfigError`` when it stood in a variable.
    """

    def __init__(
        self,
        on_command: CommandFunction | None = None,
        *,
        guard: str | None = None,
        worker_id: str | None = None,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        connect: Callable[[Address], MemberTransport] | None = None,
    ) -> None:
        self._on_command = on_command
        self._clock = clock
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._look_at = 0.0
        self._thread: threading.Thread | None = None
        self._carrier: threading.Thread | None = None
        self._commands: queue.Queue[Command | None] = queue.Queue(COMMANDS_WAITING_MAX)
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._stopping = False
        self._transport: MemberTransport | None = None
        self._address, self._worker_id = _place(guard, worker_id, environ)
        if self._address is None:
            return
        assert self._worker_id is not None
        self._hello = Hello(
            job_id=JOB,
            replica_id=self._worker_id,
            token=secrets.token_bytes(TOKEN_BYTES),
            process=this_process(),
        )
        self._pulse = Pulse(self._hello, threaded=False)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)
        self._transport = (connect or _connected)(self._address)
        atexit.register(self.close)

    @property
    def connected(self) -> bool:
        """The guard has answered, and knows this worker as far as we know."""
        return self._transport is not None and self._pulse.welcome is not None

    def beat(self) -> bool:
        """As the function ``beat``. While a thread beats, it only says whether that lives."""
        if self._transport is None or self._process != os.getpid():
            return False
        if self._thread is not None:
            return self._thread.is_alive()
        now = self._clock()
        if now < self._look_at:
            return True
        if not self._lock.acquire(blocking=False):
            return True  # another thread is at it, or the line that a signal has interrupted
        try:
            if self._transport is None:  # closed meanwhile
                return False
            self._look_at = now + LOOK_INTERVAL_S
            commands = self._exchange(self._transport, now)
        finally:
            self._lock.release()
        for command in commands:  # without the lock: it may beat itself
            answer = self._carry_out(command)
            with self._lock:
                if self._transport is not None:
                    self._transport.send(GUARD.encode(answer))
        return True

    def start(self) -> Heart:
        """Have a thread beat from now on, until ``close``. Again: no difference."""
        with self._lock:
            if self._transport is not None and self._thread is None:
                self._pulse = Pulse(self._hello, threaded=True)
                self._thread = threading.Thread(
                    target=self._run, args=(self._transport,), name="procguard-heart", daemon=True
                )
                self._thread.start()
        return self

    def close(self) -> None:
        """Beat no more. Within two seconds, whatever a command is doing. Idempotent."""
        atexit.unregister(self.close)
        if self._transport is None or self._process != os.getpid():
            return
        self._stopping = True
        self._wake()
        if self._thread is not None:
            self._thread.join(JOIN_TIMEOUT_S)
        with suppress(queue.Full):
            self._commands.put_nowait(None)
        with self._lock:
            transport, self._transport = self._transport, None
            if transport is None:
                return
            if self._pulse.welcome is None:
                transport.reconnect()  # drops what nobody took: the end need not wait for it
            transport.close()
            self._wake_read.close()
            self._wake_write.close()

    def __enter__(self) -> Heart:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- talking ------------------------------------------------------------------------------------

    def _exchange(self, transport: MemberTransport, now: float) -> list[Command]:
        """Take in what has come, and beat if that is due; the commands are for the caller."""
        commands = []
        for frame in transport.receive(RECEIVE_MAX):
            try:
                heard = self._pulse.receive(GUARD.decode(frame), now)
            except ProtocolError as error:
                _log.warning("A frame from the guard at %s was dropped: %s", self._address, error)
                continue
            if isinstance(heard, Command):
                commands.append(heard)
            elif isinstance(heard, Refused):
                _log.warning("The guard at %s refuses this worker: %s", self._address, heard.text)
        said = self._pulse.beat(now)
        if said is not None:
            transport.send(GUARD.encode(said))
        return commands

    def _carry_out(self, command: Command) -> Answer:
        token, number = self._hello.token, command.number
        try:
            if self._on_command is None:
                raise UsageError("this worker takes no commands; it needs Heart(on_command=...)")
            result = json.dumps(self._on_command(command.name, json.loads(command.arguments))).encode()
            if len(result) > DATA_BYTES_MAX:
                raise UsageError(f"the result is {len(result)} bytes long; {DATA_BYTES_MAX} can be sent")
        except Exception as error:  # noqa: BLE001  # the program's own; it goes to whoever gave the command
            _log.warning("Command %s failed: %s: %s", command.name, type(error).__name__, error)
            text = f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS_MAX]
            return Answer(token, number, False, b"", text.encode(errors="replace").decode())
        return Answer(token, number, True, result, "")

    # --- the thread ---------------------------------------------------------------------------------

    def _run(self, transport: MemberTransport) -> None:
        while not self._stopping:
            for command in self._exchange(transport, self._clock()):
                self._hand_over(command)
            while not self._answers.empty():
                transport.send(GUARD.encode(self._answers.get()))
            wait_s = max(0.0, self._pulse.due_at - self._clock())
            if transport.wait(wait_s, (self._wake_read.fileno(),)):
                self._wake_read.recv(WAKES_MAX)

    def _hand_over(self, command: Command) -> None:
        if self._carrier is None:
            self._carrier = threading.Thread(target=self._carry, name="procguard-commands", daemon=True)
            self._carrier.start()
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            text = f"this worker is busy: {COMMANDS_WAITING_MAX} commands are waiting already"
            self._answers.put(Answer(self._hello.token, command.number, False, b"", text))

    def _carry(self) -> None:
        while (command := self._commands.get()) is not None and not self._stopping:
            self._answers.put(self._carry_out(command))
            self._wake()

    def _wake(self) -> None:
        with suppress(OSError):  # full: it is being woken already; closed: nobody waits
            self._wake_write.send(b"x")


def _connected(address: Address) -> MemberTransport:
    return ZmqMemberTransport(address.host, address.port)


def _place(
    guard: str | None, worker_id: str | None, environ: Mapping[str, str]
) -> tuple[Address | None, str | None]:
    """Where the guard is and who this is; nothing where there is no guard."""
    found = WorkerSettings.read(environ)
    address = _argument("guard", parse_address, guard) if guard is not None else found.guard
    name = _argument("worker_id", parse_name, worker_id) if worker_id is not None else found.worker_id
    if (address is None) == (name is None):
        return address, name
    missing, given = (
        ("PROCGUARD_GUARD", f"worker_id {name!r}")
        if address is None
        else ("PROCGUARD_WORKER_ID", f"guard {address}")
    )
    raise UsageError(
        f"{given} is given without {missing}; a guard gives both to its workers, set both or none"
    )


def _argument(name: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
