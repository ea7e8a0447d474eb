"""The first bytes of a ZeroMQ connection (ZMTP 3.0, https://rfc.zeromq.org/spec/23/), made by hand.

libzmq's own sockets cannot be made to stop in the middle, to lie, or never to read.
"""

from __future__ import annotations

import socket
from random import Random

SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
GREETING = SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
COMMAND, LONG, MORE = 4, 2, 1
SHORT_BYTES_MAX = 255


def frame(payload: bytes, flags: int = 0) -> bytes:
    """One frame with its length in front."""
    if len(payload) <= SHORT_BYTES_MAX:
        return bytes([flags, len(payload)]) + payload
    return bytes([flags | LONG]) + len(payload).to_bytes(8, "big") + payload


def ready(socket_type: bytes) -> bytes:
    """The command that ends a handshake without keys."""
    name = b"Socket-Type"
    properties = bytes([len(name)]) + name + len(socket_type).to_bytes(4, "big") + socket_type
    return frame(b"\x05READY" + properties, COMMAND)


def shake_hands(peer: socket.socket, socket_type: bytes) -> None:
    """Become what a socket of this type is to libzmq. It takes nothing further before it has answered."""
    peer.sendall(GREETING + ready(socket_type))
    unread = len(GREETING)
    while unread:
        unread -= len(_some(peer, unread))
    _, unread = _some(peer, 1) + _some(peer, 1)  # of its own READY, which is short
    while unread:
        unread -= len(_some(peer, unread))


def _some(peer: socket.socket, bytes_max: int) -> bytes:
    """Raises ``ConnectionError`` at the end."""
    said = peer.recv(bytes_max)
    if not said:
        raise ConnectionError("turned away in the handshake")
    return said


def stranger(rng: Random) -> bytes:
    """What something says that is no member: half a handshake, one with a mistake, or another protocol."""
    whole = GREETING + ready(rng.choice([b"DEALER", b"SUB", b"ROUTER", b"REQ", b"nonsense"]))
    whole += frame(rng.randbytes(rng.randint(0, 300)), rng.choice([0, MORE, COMMAND, LONG, 0x80]))
    kinds = (
        b"",
        rng.randbytes(rng.randint(1, 200)),
        b"GET / HTTP/1.1\r\nHost: lighthouse\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        whole[: rng.randint(1, len(whole))],
        _with_a_byte_changed(whole, rng),
        whole
        + bytes([LONG])
        + rng.choice([1 << 21, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]).to_bytes(8, "big"),
        GREETING + frame(b"\x05READY" + b"\xff" * rng.randint(0, 300), COMMAND),
        GREETING[:11] + b"\x01" + GREETING[12:],  # an old version
        GREETING.replace(b"NULL\0", b"CURVE") + frame(b"\x05HELLO" + bytes(194), COMMAND),
        GREETING.replace(b"NULL\0", b"PLAIN") + frame(b"\x05HELLO\1a\1b", COMMAND),
    )
    return rng.choice(kinds)


def guest(rng: Random) -> bytes:
    """What something says after a right handshake: frames that lie, commands out of place, halves."""
    words = rng.randbytes(rng.randint(0, 300))
    length = rng.choice([0, 1, 1 << 16, 1 << 20, (1 << 20) + 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
    kinds = (
        words,
        frame(words, rng.randrange(256)),
        frame(words, MORE) + frame(words, MORE),  # and the last part never comes
        frame(words, MORE) + frame(words) + frame(words),
        bytes([LONG]) + length.to_bytes(8, "big") + words,
        bytes([LONG | MORE]) + length.to_bytes(8, "big") + words,
        frame(b"\x09SUBSCRIBE" + words, COMMAND),
        frame(b"\x06CANCEL" + words, COMMAND),
        frame(b"\x04PING\0\1" + words[:16], COMMAND) * rng.randint(1, 50),
        frame(b"\x04PONG" + words, COMMAND),
        frame(b"\x05ERROR\xff" + words, COMMAND),
        frame(b"\x05READY" + words, COMMAND),
        frame(b"\0" + words),  # the end of a topic that it never had
        frame(b"\1" + words) * rng.randint(1, 20),
    )
    return rng.choice(kinds)


def _with_a_byte_changed(whole: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(whole))
    return whole[:at] + rng.randbytes(1) + whole[at + 1 :]
