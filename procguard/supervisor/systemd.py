"""What the guard tells the service manager that started it, if one did: ``man 3 sd_notify``.

The socket and the watchdog are the guard's own: they are taken out of the environment, because each worker
gets a socket of the guard's, and a worker that spoke to systemd's would be refused or, worse, believed.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping

INTERVALS_PER_WATCHDOG = 3
_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceManager:
    """Takes its variables out of ``environ``. Where there are none, nothing is told.

    Attributes:
        watchdog_interval_s: how often ``alive`` is to be called; None: not at all.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        found = {name: environ.pop(name, "") for name in _VARIABLES}
        self._address = found["NOTIFY_SOCKET"]
        mine = found["WATCHDOG_PID"] in ("", str(os.getpid()))
        usec = found["WATCHDOG_USEC"]
        watched = mine and self._address and usec.isascii() and usec.isdecimal() and int(usec)
        self.watchdog_interval_s = int(usec) / 1e6 / INTERVALS_PER_WATCHDOG if watched else None

    def ready(self, status: str) -> None:
        self._tell(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        self._tell("WATCHDOG=1")

    def stopping(self, status: str) -> None:
        self._tell(f"STOPPING=1\nSTATUS={status}")

    def _tell(self, text: str) -> None:
        if not self._address.startswith(("/", "@")):
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(text.encode(), address)
