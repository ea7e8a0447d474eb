"""``LighthouseServer``: a lighthouse in a thread of the program that makes it.

For tests and small jobs, as in torchft; where a job is to outlive the program, run ``procguard-lighthouse``.
It keeps no state on disk, so its epoch comes from the clock, and it serves no status page: ``procguard
status`` asks it over its own port.

``bind`` is the caller's own word: beyond this machine it listens too, without keys, and says so once.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
import weakref
from contextlib import suppress

from procguard.adapters.torchft.addresses import parse_bind
from procguard.adapters.torchft.exceptions import as_torchft_raises
from procguard.adapters.zmq import ZmqLighthouseTransport
from procguard.env import Address
from procguard.errors import UsageError
from procguard.lighthouse.core import Core
from procguard.lighthouse.epoch_file import first_epoch
from procguard.lighthouse.roster import Options
from procguard.lighthouse.service import Service
from procguard.messages import Settings

_log = logging.getLogger(__name__)

JOIN_TIMEOUT_MS = 100
HEARTBEAT_INTERVAL_MS = 100
HEARTBEAT_TIMEOUT_MS = 1_000
"""Of a trainer whose listener process beats for it."""
CLIENT_TIMEOUT_MS = 5_000
"""Of whoever beats by itself, through a ``LighthouseClient``: torchft's own figure for all."""
DISCONNECT_GRACE_MS = 300
INTERVALS_PER_TIMEOUT = 3
END_TIMEOUT_S = 5.0


class LighthouseServer:
    """A lighthouse for this program's life, or until ``shutdown``.

    Args:
        bind (str): Where to listen, such as "[::]:29510", "0.0.0.0:29510" or "127.0.0.1:0". Port 0: the
            kernel chooses. Notices use a port of their own, the next one if a port is named.
        min_replicas (int): How many replica groups a quorum needs at least.
        join_timeout_ms (int): How long a quorum waits for live replicas that have not asked. Default: 100.
        quorum_tick_ms (int): Accepted and without a meaning: decisions follow events, nothing ticks.
        heartbeat_timeout_ms (int): Silence after which a replica has failed. Default: 1000 for trainers,
            whose listener process beats, and 5000 for those who call ``LighthouseClient.heartbeat``.

    Raises:
        RuntimeError: it cannot listen there, or an argument cannot work.
    """

    def __init__(
        self,
        bind: str,
        min_replicas: int,
        join_timeout_ms: int | None = None,
        quorum_tick_ms: int | None = None,
        heartbeat_timeout_ms: int | None = None,
    ) -> None:
        with as_torchft_raises():
            host, port = parse_bind(bind)
            options = _options(min_replicas, join_timeout_ms, heartbeat_timeout_ms)
            transport = ZmqLighthouseTransport(host, port)
        self._address = f"http://{Address(_reached_at(host), transport.port)}"
        if not ipaddress.ip_address(host).is_loopback:
            _log.warning(
                "LighthouseServer(bind=%r) listens beyond this machine and asks nobody for a key: whoever "
                "reaches port %d can make replicas fail; `procguard-lighthouse --keys` asks",
                bind,
                transport.port,
            )
        running = _Running(transport, options._replace(notice_port=transport.notice_port))
        self._end = weakref.finalize(self, running.end)

    def address(self) -> str:
        """Where trainers reach it: "http://host:port".

        Returns:
            str: For TORCHFT_LIGHTHOUSE, PROCGUARD_LIGHTHOUSE, or a client's ``addr``.
        """
        return self._address

    def shutdown(self) -> None:
        """Stop and close its ports. Again: no difference."""
        self._end()


class _Running:
    """The loop in its thread; the server may be collected while it turns."""

    def __init__(self, transport: ZmqLighthouseTransport, options: Options) -> None:
        self._transport = transport
        self._ending = False
        core = Core(options, first_epoch(time.time_ns() // 1_000_000), time.monotonic())
        self._service = Service(core, transport, lambda epoch: None)
        self._thread = threading.Thread(target=self._run, name="procguard-lighthouse", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._service.run(stop=lambda: self._ending)
        finally:
            self._transport.close()

    def end(self) -> None:
        self._ending = True
        with suppress(OSError):  # it has ended by itself
            self._transport.wake()
        self._thread.join(END_TIMEOUT_S)


def _options(min_replicas: int, join_timeout_ms: int | None, heartbeat_timeout_ms: int | None) -> Options:
    _check("min_replicas", min_replicas)
    join_ms = JOIN_TIMEOUT_MS if join_timeout_ms is None else _check("join_timeout_ms", join_timeout_ms)
    if heartbeat_timeout_ms is None:
        timeout_ms, client_ms = HEARTBEAT_TIMEOUT_MS, CLIENT_TIMEOUT_MS
    else:
        timeout_ms = client_ms = _check("heartbeat_timeout_ms", heartbeat_timeout_ms)
    settings = Settings(
        heartbeat_interval_s=min(HEARTBEAT_INTERVAL_MS, timeout_ms / INTERVALS_PER_TIMEOUT) / 1000,
        heartbeat_timeout_s=timeout_ms / 1000,
        thread_heartbeat_timeout_s=client_ms / 1000,
        disconnect_grace_s=min(DISCONNECT_GRACE_MS, timeout_ms / 2) / 1000,
        join_timeout_s=join_ms / 1000,
    )
    return Options(settings, min_replicas, notice_port=0, restarted=False)


def _check(name: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise UsageError(f"{name} is {value!r}; give a whole number, 1 or more")
    return value


def _reached_at(host: str) -> str:
    """The name under which others know the address that it listens on."""
    if not ipaddress.ip_address(host).is_unspecified:
        return host
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:  # a machine that does not know its own name
        return "127.0.0.1"
    return name
