"""One process that attacks a lighthouse, in the ways that it is told to: ``python -m fuzz.attacker ADDRESS``.

Takes orders on standard input, a JSON object a line, and answers each with one when it is done. Nothing that
it does needs more than to reach the two ports; it knows no token of a member.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import cycle, islice
from random import Random
from typing import Any

import click
import zmq

from benchmarks.crowd import crowd_context
from fuzz import zmtp
from fuzz.mutation import Mutator, frames_of
from procguard.adapters.zmq_sockets import CLIENT, Context, Socket, open_socket
from procguard.codec import WIRE, decode, encode
from procguard.messages import EPOCH_MAX, KIND_OF, KINDS, Ack, Incarnation, Leave, notice_topic

CONNECTIONS = 16
"""That hostile frames come over. Half of them read what is answered."""
FRAMES_EACH = 12
POOL_COUNT = 60_000
"""Different frames of a flood; making one takes ten times as long as sending it."""
BURST_S = 0.002
PARTS_ONE_IN = 200
"""Frames that come in several parts, where one is expected."""
ANSWER_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 5.0
STORM_AT_ONCE = 100
HELD_MAX = 400
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a reset."""


class Attacker:
    """What can be ordered, by name."""

    def __init__(self, address: str, notice_port: int, seed: int) -> None:
        host, _, port = address.rpartition(":")
        self._address = address
        self._ports = ((host, int(port)), (host, notice_port))
        self._rng = Random(seed)
        self._mutator = Mutator(frames_of(WIRE, KINDS.values(), self._rng, FRAMES_EACH))
        self._context: Context = crowd_context()
        self._dealers: list[Socket] = []
        self._held: list[socket.socket] = []
        self._subscribers: list[socket.socket] = []
        self._pool: list[bytes] = []
        self.orders: dict[str, Callable[..., dict[str, Any]]] = {
            "frames": self.frames,
            "prepare": self.prepare,
            "flood": self.flood,
            "strangers": self.strangers,
            "storm": self.storm,
            "subscribers": self.subscribers,
            "leave": self.leave,
        }

    def frames(self, count: int) -> dict[str, Any]:
        """Send so many frames, no two made alike, as fast as they go; done when the last was read."""
        dealers = self._connected()
        for dealer in islice(cycle(dealers), count):
            payload = self._mutator.hostile(self._rng)
            if self._rng.randrange(PARTS_ONE_IN):
                dealer.send(payload)
            else:
                dealer.send_multipart([payload, b"", payload[:100]])
            if self._rng.random() < 0.01:
                self._read(dealers)
        self._until_read(dealers)
        return {"sent": count}

    def prepare(self) -> dict[str, Any]:
        """Make the frames of a flood."""
        self._pool = [self._mutator.hostile(self._rng) for _ in range(POOL_COUNT)]
        return {"made": len(self._pool)}

    def flood(self, rate: int, seconds: float) -> dict[str, Any]:
        """Send frames at this rate until another line is heard. What does not fit is lost."""
        dealers = self._connected()
        lines = cycle([dealer.send for dealer in dealers])
        pool = cycle(self._pool)
        sent = lost = 0
        started = time.monotonic()
        while (elapsed := time.monotonic() - started) < seconds and not select.select([sys.stdin], [], [], 0)[
            0
        ]:
            for send, payload in zip(islice(lines, int(elapsed * rate) - sent - lost), pool, strict=False):
                try:
                    send(payload, zmq.NOBLOCK)
                    sent += 1
                except zmq.Again:
                    lost += 1
            self._read(dealers)
            time.sleep(BURST_S)
        sys.stdin.readline()
        return {"sent": sent, "lost": lost, "seconds": elapsed}

    def strangers(self, count: int) -> dict[str, Any]:
        """Connect and say something that no member says, in the handshake or after it; some hang up, some
        stay and are silent."""
        for _ in range(count):
            with suppress(OSError):  # refused, or cut off in the middle: as it should be
                self._one_stranger()
        return {"connected": count}

    def leave(self) -> dict[str, Any]:
        """Close what was left open, without a word."""
        gone = [*self._subscribers, *self._held]
        self._subscribers, self._held = [], []
        for each in gone:
            each.close()
        return {"closed": len(gone)}

    def _one_stranger(self) -> None:
        rng = self._rng
        stranger = socket.create_connection(rng.choice(self._ports), CONNECT_TIMEOUT_S)
        self._held.append(stranger)
        if len(self._held) > HELD_MAX:
            self._held.pop(rng.randrange(HELD_MAX)).close()
        if rng.random() < 0.5:
            stranger.sendall(zmtp.stranger(rng))
        else:
            zmtp.shake_hands(stranger, rng.choice([b"DEALER", b"SUB"]))
            stranger.sendall(zmtp.guest(rng))
        if rng.random() < 0.2:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if rng.random() < 0.5:
            self._held.remove(stranger)
            stranger.close()

    def storm(self, count: int) -> dict[str, Any]:
        """So many connections, a hundred at a time, all dropped at once."""
        for _ in range(count // STORM_AT_ONCE):
            wave = []
            for port in islice(cycle(self._ports), STORM_AT_ONCE):
                with suppress(OSError):
                    wave.append(socket.create_connection(port, CONNECT_TIMEOUT_S))
            for one in wave:
                one.close()
        return {"connected": count}

    def subscribers(self, count: int, job_id: str) -> dict[str, Any]:
        """So many that subscribe to a job's notices and never read one."""
        for number in range(count):
            topic = notice_topic(job_id) if number % 2 else b""
            one = socket.create_connection(self._ports[1], CONNECT_TIMEOUT_S)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            zmtp.shake_hands(one, b"SUB")
            one.sendall(zmtp.frame(b"\1" + topic))
            self._subscribers.append(one)
        return {"subscribed": len(self._subscribers)}

    def _connected(self) -> Sequence[Socket]:
        while len(self._dealers) < CONNECTIONS:
            dealer = open_socket(self._context, zmq.DEALER, CLIENT)
            dealer.connect(f"tcp://{self._address}")
            self._dealers.append(dealer)
        return self._dealers

    def _read(self, dealers: Sequence[Socket]) -> None:
        for dealer in dealers[::2]:
            with suppress(zmq.Again):
                while True:
                    dealer.recv(zmq.NOBLOCK)

    def _until_read(self, dealers: Sequence[Socket]) -> None:
        """A connection keeps its order: once what was sent last is acknowledged, all before it was read."""
        last = Leave(self._rng.randbytes(16), Incarnation(EPOCH_MAX, 1), 0)
        give_up_at = time.monotonic() + ANSWER_TIMEOUT_S
        for dealer in dealers[::2]:
            self._read([dealer])
            dealer.send(encode(last))
        for dealer in dealers[::2]:
            while decode(dealer.recv()) != Ack(KIND_OF[Leave], last.token):
                if not dealer.poll(int(ANSWER_TIMEOUT_S * 1000)) or time.monotonic() > give_up_at:
                    raise TimeoutError(f"frames were not read within {ANSWER_TIMEOUT_S} s")


@click.command()
@click.argument("address")
@click.argument("notice_port", type=int)
@click.option("--seed", default=1, show_default=True)
def main(address: str, notice_port: int, seed: int) -> None:
    """Attack the lighthouse at ADDRESS until stdin ends."""
    attacker = Attacker(address, notice_port, seed)
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        print(json.dumps(attacker.orders[order.pop("do")](**order)), flush=True)


if __name__ == "__main__":
    main()
