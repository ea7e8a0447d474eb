"""Where a session can run: in a listener process of its own, or in a thread of the trainer.

Both hosts hand out a ``Link`` to talk with the session and end it the same way, so that the companion
need not know which is which.
"""

from __future__ import annotations

import os
import secrets
import select
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import procguard
from procguard.adapters.base import MemberTransport, RankServer
from procguard.client.group_host import GroupHost
from procguard.client.link import Link, LinkEnd, link_pair
from procguard.client.link_words import Farewell
from procguard.client.loop import ListenerLoop
from procguard.client.session import Session, Trainer
from procguard.client.witness import LifeLine, SharedBoard
from procguard.messages import Cause, Phase, listener_topic

NONCE_BYTES = 16
END_TIMEOUT_S = 2.0
VERDICT_TIMEOUT_S = 0.1
NO_FD = -1


class Host(Protocol):
    """A running session."""

    @property
    def link(self) -> LinkEnd:
        """Our end."""
        ...

    pid: int | None
    """Of the process of its own in which it runs; None: in a thread of this one."""

    def close(self) -> None:
        """Send the session home; returns at once."""
        ...

    def ended_with(self) -> str:
        """How it ended, once its link has; nothing of it is left then."""
        ...


class ListenerProcess:
    """``python -m procguard.client.listener`` with the descriptors of our life line.

    Args:
        secret: handed down through a pipe, as an argument or a variable could be seen by others and a file
            may have changed since we read it; empty: no pipe.
    """

    def __init__(
        self, command: Callable[[int, int, bytes], Sequence[str]], life_line: LifeLine, secret: bytes = b""
    ) -> None:
        with ExitStack() as on_failure, ExitStack() as after_all:
            ours, theirs = link_pair()
            on_failure.callback(ours.close)
            fds = (theirs.fileno(), *life_line.fds)
            secret_fd = NO_FD
            if secret:
                secret_fd = _pipe_with(secret)
                after_all.callback(os.close, secret_fd)
                fds = (*fds, secret_fd)
            with theirs:
                self._process = subprocess.Popen(
                    command(theirs.fileno(), secret_fd, listener_topic(secrets.token_bytes(NONCE_BYTES))),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    cwd="/",  # else a zmq.py or signal.py lying in the trainer's folder would be imported
                    pass_fds=fds,
                    env={**os.environ, "PYTHONPATH": _python_path()},
                )
            on_failure.pop_all()
        self.pid: int | None = self._process.pid
        self.link = Link(ours)

    def close(self) -> None:
        self.link.send(Farewell())
        self.link.close()
        threading.Thread(target=self._reap, name="procguard-reaper", daemon=True).start()

    def ended_with(self) -> str:
        try:
            code = self._process.wait(VERDICT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return "it did not read its link"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _reap(self) -> None:
        """Leave no zombie; a listener that does not go by itself is ended."""
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class ListenerThread:
    """The same loop in a daemon thread: while no listener process is there, or none is wanted."""

    pid: int | None = None

    def __init__(
        self,
        transport: MemberTransport,
        board: SharedBoard,
        open_server: Callable[[str], RankServer],
        *,
        hear_notices: bool,
    ) -> None:
        ours, theirs = link_pair()
        self.link = Link(ours)
        topic = listener_topic(secrets.token_bytes(NONCE_BYTES))
        session = Session(threaded=True, topic=topic, hear_notices=hear_notices)
        self._inner = Link(theirs)
        self._transport = transport
        self._group_host = GroupHost(open_server)
        self._loop = ListenerLoop(session, transport, self._inner, _BoardWatch(board), self._group_host)
        threading.Thread(target=self._run, name="procguard-session", daemon=True).start()

    def close(self) -> None:
        self.link.send(Farewell())
        self.link.close()

    def ended_with(self) -> str:
        return "the end of its thread"

    def _run(self) -> None:
        try:
            self._loop.run()
        finally:
            self._group_host.close()
            self._transport.close()
            self._inner.close()


class _BoardWatch:
    """A trainer seen from inside: it cannot be dead, nor stopped, while it looks."""

    def __init__(self, board: SharedBoard) -> None:
        self._board = board

    def fds(self) -> Sequence[int]:
        return ()

    def look(self) -> tuple[Trainer, Cause | None]:
        board = self._board.read()
        return Trainer(Phase(board.phase), board.progress, board.step), None


def _pipe_with(content: bytes) -> int:
    """A descriptor from which this can be read, and then its end."""
    assert len(content) <= select.PIPE_BUF  # so that writing it never waits for a reader
    ours, theirs = os.pipe()
    os.write(theirs, content)
    os.close(theirs)
    return ours


def _python_path() -> str:
    """Let the listener find this very ProcGuard, installed or not."""
    here = str(Path(procguard.__file__).resolve().parent.parent)
    inherited = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return os.pathsep.join([here, *map(os.path.abspath, inherited)])
