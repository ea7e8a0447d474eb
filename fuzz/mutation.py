"""Frames that are nearly right, made from a seed.

A mutator that only flips bits is stopped by the first length that does not fit; one that only builds trees
never meets a length that lies. So a frame is known here both as bytes and as the places of its msgpack
values: a value can be taken out, doubled, put in the place of another or replaced by one of ``ODD``, and the
bytes of whatever came of that can be changed once more.

The same ``Random`` gives the same frames; nothing else goes in.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from random import Random
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgpack

from procguard.codec import Codec

MUTATIONS_MAX = 3
HEAVY_ONE_IN = 1_000
"""A heavy value costs a hundred times what others do, and says no more the second time."""
ITEMS_MAX = 3
INT_BITS_MAX = 63
INSERTED_BYTES_MAX = 12
TOKENS = tuple([bytes([letter]) * 16 for letter in b"abcd"])
"""Few, so that one frame speaks of the same process as another."""
TEXTS = ("", "a", "r0", "default", "nä", "127.0.0.1:29511", "x" * 200)


def nested(opening: bytes, depth: int) -> bytes:
    """A value so deep: arrays in arrays, maps in maps."""
    return opening * depth + b"\xc0"


ODD: tuple[bytes, ...] = (
    b"\xc0",
    b"\xc1",  # the one byte that msgpack has no meaning for
    b"\xc2",
    b"\xc3",
    *map(msgpack.packb, [0, 1, 5, 6, 31, 99, -1, -33, 255, 1 << 16, (1 << 42) - 1, 1 << 42]),
    *map(msgpack.packb, [(1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63)]),
    *map(msgpack.packb, [0.0, -0.0, 1.0, -1.0, 5e-324, 1e308, float("inf"), -float("inf"), float("nan")]),
    b"\xca\x7f\xc0\x00\x00",  # not a number, in four bytes
    *map(msgpack.packb, ["", "a", "t" * 16, "x" * 255, "x" * 256, "\0", b"", b"t" * 16, b"t" * 17]),
    b"\xa1\xff",
    b"\xa2\xc0\x80",  # a zero in two bytes
    b"\xa3\xed\xa0\x80",  # half of a surrogate pair
    b"\xa4\xf4\x90\x80\x80",  # beyond Unicode
    msgpack.packb(msgpack.ExtType(5, b"ab")),
    b"\xd6\xff" + bytes(4),
    b"\xc7\x0c\xff" + b"\xff" * 12,  # a time with too many nanoseconds
    b"\xc7\x00\xff",
    b"\x80",
    b"\x82\xa1a\x01\xa1a\x02",  # a key twice
    b"\x81\x90\x01",
    b"\x81\x80\x01",
    b"\x81\xcb\x7f\xf8\0\0\0\0\0\0\x01",
    b"\x90",
    b"\x91\x90",
    b"\x9f" + b"\x01" * 15,
    b"\xdd\xff\xff\xff\xff",  # and no item follows
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x05",
    b"\xdc\xff\xff",
    nested(b"\x91", 30),
    nested(b"\x81\x01", 30),
)
HEAVY: tuple[bytes, ...] = (
    *map(msgpack.packb, ["x" * 4096, "x" * 4097, b"x" * (1 << 16), b"x" * ((1 << 16) + 1)]),
    msgpack.packb([None] * 20_000),
    msgpack.packb({n: n for n in range(2_000)}),
    nested(b"\x91", 600),
    nested(b"\x91", 100_000),
    nested(b"\x81\x01", 1_100),
    nested(b"\x92\xc0", 1_100),
)


class Frame(NamedTuple):
    """A right one, and where its values begin and end, those inside others included."""

    payload: bytes
    places: tuple[tuple[int, int], ...]


def frame_of(payload: bytes) -> Frame:
    """Find the values of a frame. It must be msgpack, and without maps."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(payload)
    places: list[tuple[int, int]] = []

    def walk() -> None:
        start = unpacker.tell()
        if payload[start] >> 4 == 0x9 or payload[start] in (0xDC, 0xDD):
            for _ in range(unpacker.read_array_header()):
                walk()
        else:
            unpacker.skip()
        places.append((start, unpacker.tell()))

    walk()
    return Frame(payload, tuple(places))


def frames_of(codec: Codec[Any], kinds: Iterable[type], rng: Random, each: int) -> list[Frame]:
    """So many right frames of each kind."""
    return [frame_of(codec.encode(sample(kind, rng))) for kind in kinds for _ in range(each)]


def sample(kind: Any, rng: Random) -> Any:
    """A value that an annotation of ``messages`` allows."""
    size = None
    if get_origin(kind) is Annotated:
        kind, size = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        inner = next(k for k in get_args(kind) if k is not type(None))
        return sample(inner, rng) if rng.random() < 0.8 else None
    if get_origin(kind) is tuple:
        items = get_args(kind)
        if items[-1] is Ellipsis:
            items = items[:1] * rng.randint(0, ITEMS_MAX)
        return tuple([sample(item, rng) for item in items])
    if issubclass(kind, tuple):
        hints = get_type_hints(kind, include_extras=True)
        return kind(*[sample(hints[name], rng) for name in kind._fields])
    if issubclass(kind, IntEnum):
        return rng.choice(list(kind))
    if kind is str:
        low, high = size or (0, 4096)
        return rng.choice([text for text in TEXTS if low <= len(text) <= high])
    if kind is bytes:
        low, high = size or (0, 64)
        if low == high == len(TOKENS[0]):
            return rng.choice(TOKENS)
        return rng.randbytes(rng.randint(low, min(high, low + 20)))
    scalars: Mapping[type, Callable[[], Any]] = {
        bool: lambda: rng.random() < 0.5,
        int: lambda: rng.getrandbits(rng.choice([1, 1, 2, 7, 8, 16, 32, INT_BITS_MAX])),
        float: lambda: rng.choice([0.0, 0.1, 1.0, 60.0, rng.random()]),
    }
    return scalars[kind]()


class Mutator:
    """Makes hostile frames of right ones."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self._frames = frames
        self._first: tuple[Callable[[Random, Frame], bytes], ...] = (
            self._replace_by_odd,
            self._replace_by_odd,
            self._replace_by_another,
            self._take_out,
            self._double,
            self._lie_about_length,
            self._splice,
            lambda rng, frame: frame.payload,
        )

    def hostile(self, rng: Random, frame: Frame | None = None) -> bytes:
        """This frame, or one of any kind, wrong in one to some ways; by chance it may still be right."""
        payload = rng.choice(self._first)(rng, frame or rng.choice(self._frames))
        for _ in range(rng.randrange(MUTATIONS_MAX)):
            payload = rng.choice(_BYTEWISE)(rng, payload)
        return payload

    # --- of values ----------------------------------------------------------------------------------

    def _replace_by_odd(self, rng: Random, frame: Frame) -> bytes:
        odd = rng.choice(ODD if rng.randrange(HEAVY_ONE_IN) else HEAVY)
        return _replaced(frame.payload, rng.choice(frame.places), odd)

    def _replace_by_another(self, rng: Random, frame: Frame) -> bytes:
        donor = rng.choice(self._frames)
        start, end = rng.choice(donor.places)
        return _replaced(frame.payload, rng.choice(frame.places), donor.payload[start:end])

    def _take_out(self, rng: Random, frame: Frame) -> bytes:
        return _replaced(frame.payload, rng.choice(frame.places), b"")

    def _double(self, rng: Random, frame: Frame) -> bytes:
        start, end = rng.choice(frame.places)
        return frame.payload[:end] + frame.payload[start:]

    def _lie_about_length(self, rng: Random, frame: Frame) -> bytes:
        """Of a value's first byte, which says what follows and how much."""
        start, _ = rng.choice(frame.places)
        lie = frame.payload[start] + rng.choice((-2, -1, 1, 2)) if rng.random() < 0.5 else rng.randrange(256)
        return _replaced(frame.payload, (start, start + 1), bytes([lie % 256]))

    def _splice(self, rng: Random, frame: Frame) -> bytes:
        donor = rng.choice(self._frames).payload
        return frame.payload[: rng.randint(0, len(frame.payload))] + donor[rng.randrange(len(donor)) :]


def _replaced(payload: bytes, place: tuple[int, int], by: bytes) -> bytes:
    return payload[: place[0]] + by + payload[place[1] :]


def _flip_a_bit(rng: Random, payload: bytes) -> bytes:
    if not payload:
        return payload
    at = rng.randrange(len(payload))
    return payload[:at] + bytes([payload[at] ^ 1 << rng.randrange(8)]) + payload[at + 1 :]


def _set_a_byte(rng: Random, payload: bytes) -> bytes:
    at = rng.randint(0, len(payload))
    return payload[:at] + rng.randbytes(1) + payload[at + 1 :]


def _insert(rng: Random, payload: bytes) -> bytes:
    at = rng.randint(0, len(payload))
    return payload[:at] + rng.randbytes(rng.randint(1, INSERTED_BYTES_MAX)) + payload[at:]


def _cut_out(rng: Random, payload: bytes) -> bytes:
    at = rng.randint(0, len(payload))
    return payload[:at] + payload[at + rng.randint(1, INSERTED_BYTES_MAX) :]


def _cut_short(rng: Random, payload: bytes) -> bytes:
    return payload[: rng.randint(0, len(payload))]


def _add_a_tail(rng: Random, payload: bytes) -> bytes:
    return payload + (rng.randbytes(rng.randint(1, INSERTED_BYTES_MAX)) if rng.random() < 0.5 else payload)


_BYTEWISE: tuple[Callable[[Random, bytes], bytes], ...] = (
    _flip_a_bit,
    _flip_a_bit,
    _set_a_byte,
    _insert,
    _cut_out,
    _cut_short,
    _add_a_tail,
)
