"""``python -m procguard.client.listener``: the listener process, started by its trainer and by nobody else.

Immune to the trainer's GIL and to the signals that end a trainer: it has a session of its own and ignores
INT, TERM and HUP, because its last duty comes after the trainer's end. It holds none of the trainer's
standard streams. Its configuration comes over the link; its arguments say only which descriptors it was
given. One of them is a pipe with the key of its replica, if the lighthouse asks for keys.

Imports zmq, msgpack and ProcGuard's own client rooms, nothing else: it must be there in 30 ms.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial

from procguard.adapters.scheduling import run_promptly
from procguard.adapters.zmq import ZmqMemberTransport
from procguard.adapters.zmq_keys import MemberKeys
from procguard.adapters.zmq_ranks import ZmqRankServer
from procguard.client.group_host import GroupHost
from procguard.client.link import Link
from procguard.client.link_words import Said
from procguard.client.loop import ListenerLoop
from procguard.client.session import Session, Trainer
from procguard.client.witness import Death, LifeLine, Witness
from procguard.messages import Cause, CauseKind, Phase

PARTING_PAUSE_S = 0.05
"""Between the last word and the end: our own going costs 2 ms of a CPU that the survivors have use for."""
_NONE = -1
_PHASES = {int(phase): phase for phase in Phase}


class WitnessWatch:
    """The witness, in the session's words."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    def fds(self) -> Sequence[int]:
        return self._witness.fds()

    def look(self) -> tuple[Trainer, Cause | None]:
        death = self._witness.verdict()
        stopped = death is None and self._witness.look().letter == "T"
        if self._witness.board is None:
            trainer = Trainer(stopped=stopped)
        else:
            board = self._witness.board.read()
            trainer = Trainer(_PHASES.get(board.phase, Phase.STARTING), board.progress, board.step, stopped)
        return trainer, cause_of(death) if death else None


def cause_of(death: Death) -> Cause:
    """A death as the wire says it."""
    if death.exec:
        return Cause(CauseKind.PROCESS_REPLACED)
    return Cause(CauseKind.PROCESS_EXIT, death.exit_code, death.signal, death.core)


class LinkLog(logging.Handler):
    """Sends log lines to the trainer, which has somewhere to show them."""

    def __init__(self, link: Link) -> None:
        super().__init__(logging.INFO)
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        self._link.send(Said(record.levelno, record.getMessage()[:4096]))


def command(host: str, port: int, life_line: LifeLine, link_fd: int, keys_fd: int, topic: bytes) -> list[str]:
    """The command line that starts ``main`` with these."""
    fds = (link_fd, life_line.memfd, life_line.pidfd, keys_fd)
    numbers = [str(_NONE if fd is None else fd) for fd in fds]
    return [sys.executable, "-m", "procguard.client.listener", host, str(port), topic.hex(), *numbers]


def inherited_keys(fd: int) -> MemberKeys:
    """From the pipe that our trainer left them in."""
    with open(fd, encoding="ascii") as pipe:
        return MemberKeys.from_text(pipe.read(), "the key handed down by the trainer")


def main(argv: Sequence[str]) -> None:
    """Run one session to its end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    run_promptly()
    host, port, topic = argv[0], int(argv[1]), bytes.fromhex(argv[2])
    link_fd, memfd, pidfd, keys_fd = (int(number) for number in argv[3:7])
    link = Link(socket.socket(fileno=link_fd))
    logging.getLogger("procguard").addHandler(LinkLog(link))
    watch = None
    if pidfd != _NONE:
        watch = WitnessWatch(Witness(None if memfd == _NONE else memfd, pidfd))
    keys = None if keys_fd == _NONE else inherited_keys(keys_fd)
    transport = ZmqMemberTransport(host, port, keys)
    group_host = GroupHost(partial(ZmqRankServer, keys=keys))
    try:
        session = Session(threaded=False, topic=topic)
        ListenerLoop(session, transport, link, watch, group_host).run()
        time.sleep(PARTING_PAUSE_S)
    finally:
        group_host.close()
        transport.close()


if __name__ == "__main__":
    gc.freeze()  # a collection need not look at what was imported: 2 ms that a notice might wait for
    main(sys.argv[1:])
    os._exit(0)  # nothing is left to tidy up, and the interpreter's own end takes 5 ms
