"""The ranks of a replica group over ZeroMQ: a ROUTER where rank 0's session runs.

A rank reaches it as any member reaches a lighthouse, with ``ZmqMemberTransport``.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

import zmq

from procguard.adapters.base import Frame
from procguard.adapters.zmq_sockets import ROUTER, Context, bind_socket, endpoint, open_socket
from procguard.errors import UsageError
from procguard.messages import ANSWER_BYTES_MAX

EVERYWHERE = "*"
_NOBLOCK = int(zmq.NOBLOCK)


class ZmqRankServer:
    """A ROUTER on a free port.

    Args:
        host: what the ranks know this machine as. Listens there alone if it is an address of this machine,
            and everywhere if it is not, as behind a translated address.
    """

    def __init__(self, host: str) -> None:
        self._process = os.getpid()
        self._closed = False
        self._context: Context = zmq.Context(io_threads=1)
        self._router = open_socket(self._context, zmq.ROUTER, ROUTER)
        try:
            port = bind_socket(self._router, host, 0)
        except UsageError:
            port = bind_socket(self._router, EVERYWHERE, 0)
        self._address = endpoint(host, port).removeprefix("tcp://")

    @property
    def address(self) -> str:
        return self._address

    def fileno(self) -> int:
        return int(self._router.get(zmq.FD))

    def has_input(self) -> bool:
        return bool(int(self._router.get(zmq.EVENTS)) & zmq.POLLIN)

    def drain(self, count_max: int) -> list[Frame]:
        frames: list[Frame] = []
        with suppress(zmq.Again):
            for _ in range(count_max):
                parts = self._router.recv_multipart(_NOBLOCK)
                if len(parts) == 2:
                    frames.append(Frame(*parts))
        return frames

    def send(self, peer: bytes, frame: bytes) -> bool:
        if len(frame) > ANSWER_BYTES_MAX:
            return False
        try:
            self._router.send_multipart([peer, frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.EAGAIN):
                raise
            return False
        return True

    def close(self) -> None:
        if self._closed or self._process != os.getpid():
            return
        self._closed = True
        self._router.close()
        self._context.term()
