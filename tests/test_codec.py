"""Every message survives the way over the wire; nothing else gets in, and only ``ProtocolError`` gets out."""

from __future__ import annotations

import random
import types
from contextlib import suppress
from enum import IntEnum
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from procguard.codec import BYTES_SIZE, INT_MAX, TEXT_SIZE, Codec, decode, encode
from procguard.errors import ProtocolError
from procguard.messages import FRAME_BYTES_MAX, KINDS, PROTOCOL_VERSION, Heartbeat, Incarnation, Phase, Size

ITEMS_MAX = 3
HEARTBEAT = Heartbeat(bytes(range(16)), Incarnation(1, 2), True, False, Phase.COMPUTE, 4, 5)


def built(kind: Any) -> st.SearchStrategy[Any]:
    """Values that an annotation of ``messages`` allows. Written anew, so that the codec can be wrong."""
    size = None
    if get_origin(kind) is Annotated:
        kind, size = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return st.none() | st.one_of([built(k) for k in get_args(kind) if k is not type(None)])
    if get_origin(kind) is tuple:
        items = get_args(kind)
        if items[-1] is Ellipsis:
            return st.lists(built(items[0]), max_size=ITEMS_MAX).map(tuple)
        return st.tuples(*[built(item) for item in items])
    if issubclass(kind, tuple):
        hints = get_type_hints(kind, include_extras=True)
        return st.builds(kind, **{name: built(hints[name]) for name in kind._fields})
    if issubclass(kind, IntEnum):
        return st.sampled_from(list(kind))
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(0, INT_MAX)
    if kind is float:
        return st.floats(0, allow_nan=False, allow_infinity=False)
    if kind is str:
        low, high = size or TEXT_SIZE
        return st.text(st.characters(exclude_categories=["Cs"]), min_size=low, max_size=min(high, low + 20))
    assert kind is bytes
    low, high = size or BYTES_SIZE
    return st.binary(min_size=low, max_size=min(high, low + 20))


MESSAGES = st.one_of([built(kind) for kind in KINDS.values()])


def refused(frame: bytes) -> str:
    with pytest.raises(ProtocolError) as raised:
        decode(frame)
    text = str(raised.value)
    assert len(text) < 300
    return text


def packed(*array: Any) -> bytes:
    frame: bytes = msgpack.packb(array)
    return frame


def heartbeat_with(**fields: Any) -> bytes:
    values = {**HEARTBEAT._asdict(), **fields}
    return packed(PROTOCOL_VERSION, 2, *values.values())


def only_protocol_error(frame: bytes) -> None:
    with suppress(ProtocolError):
        decode(frame)


# --- what is right


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_every_message_survives_the_wire(kind):
    @given(built(kind))
    def check(message):
        back = decode(encode(message))
        assert back == message
        assert same_types(back, message)

    check()


def same_types(one: Any, other: Any) -> bool:
    """Equal tuples of different classes are equal, and so are True and 1: here they are not."""
    if type(one) is not type(other):
        return False
    return not isinstance(one, tuple) or all(same_types(a, b) for a, b in zip(one, other, strict=True))


@given(MESSAGES)
def test_one_message_has_one_frame(message):
    assert encode(decode(encode(message))) == encode(message)


def test_limits_are_inclusive():
    class Bounded(NamedTuple):
        text: Annotated[str, Size(1, 3)]
        blob: Annotated[bytes, Size(2, 2)]
        number: int

    codec: Codec[Bounded] = Codec(1, {1: Bounded})
    for message in (Bounded("a", b"ab", 0), Bounded("äöü", b"ab", INT_MAX)):
        assert codec.decode(codec.encode(message)) == message
    for bad in (
        ("", b"ab", 0),
        ("abcd", b"ab", 0),
        ("a", b"a", 0),
        ("a", b"abc", 0),
        ("a", b"ab", INT_MAX + 1),
    ):
        with pytest.raises(ProtocolError):
            codec.decode(packed(1, 1, *bad))


def test_a_whole_number_is_a_float_where_one_is_wanted():
    class Timed(NamedTuple):
        seconds: float

    codec: Codec[Timed] = Codec(1, {1: Timed})
    assert type(codec.decode(packed(1, 1, 3)).seconds) is float


# --- what is wrong with the frame


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xc1")
@example(b"\x90")
@example(b"\x91\x01")
def test_garbage(frame):
    only_protocol_error(frame)


@given(MESSAGES, st.data())
def test_every_frame_cut_short_or_with_a_tail(message, data):
    frame = encode(message)
    refused(frame[: data.draw(st.integers(0, len(frame) - 1))])
    refused(frame + data.draw(st.binary(min_size=1, max_size=20)))


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_every_mutation_of_one_byte(kind, seed=7):
    """All 255 other values of every byte of a real frame."""
    frame = bytearray(encode(sample(kind, random.Random(seed))))
    for at in range(len(frame)):
        right = frame[at]
        for wrong in range(256):
            frame[at] = wrong
            if wrong != right:
                only_protocol_error(bytes(frame))
        frame[at] = right


def sample(kind: Any, rng: random.Random) -> Any:
    """A message with every optional part there and one of each item, the same for the same seed."""
    if get_origin(kind) is Annotated:
        kind, size = get_args(kind)
        return rng.randbytes(size.low or 2) if kind is bytes else "nä"
    if get_origin(kind) in (Union, types.UnionType):
        return sample(next(k for k in get_args(kind) if k is not type(None)), rng)
    if get_origin(kind) is tuple:
        items = get_args(kind)
        if items[-1] is Ellipsis:
            items = items[:1]
        return tuple(sample(item, rng) for item in items)
    if issubclass(kind, tuple):
        hints = get_type_hints(kind, include_extras=True)
        return kind(*[sample(hints[name], rng) for name in kind._fields])
    if issubclass(kind, IntEnum):
        return rng.choice(list(kind))
    return {bool: True, int: rng.randrange(1 << 40), float: rng.random(), str: "t", bytes: b"b"}[kind]


@given(MESSAGES, st.data())
def test_mutations_of_several_bytes(message, data):
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 5))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    only_protocol_error(bytes(frame))


@pytest.mark.parametrize(
    "frame",
    [
        random.Random(1).randbytes(FRAME_BYTES_MAX),
        bytes(FRAME_BYTES_MAX),
        b"\xc0" * FRAME_BYTES_MAX,
        b"\x91" * FRAME_BYTES_MAX,
        b"\x81" * FRAME_BYTES_MAX,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff" + b"\xc0" * 100,
        b"\xdb\xff\xff\xff\xff" + b"x" * 100,
        packed(PROTOCOL_VERSION, [None] * 1_000_000),
        packed([None] * 1_000_000, 2),
        packed(PROTOCOL_VERSION, 2, *[0] * 100_000),
        packed(PROTOCOL_VERSION, "x" * 1_000_000),
        heartbeat_with(token="ä" * 500_000),
        heartbeat_with(token=[["x"] * 1000] * 500),
    ],
    ids=lambda frame: frame[:4].hex(),
)
def test_a_mebibyte_of_garbage(frame):
    refused(frame)


@pytest.mark.parametrize("depth", [1, 10, 500, 600, 1000, 1100, 100_000])
@pytest.mark.parametrize(
    "opening", [b"\x91", b"\x81\x01", b"\x92\xc0"], ids=["arrays", "maps", "right arrays"]
)
def test_deep_nesting(depth, opening):
    nested = opening * depth + b"\xc0"
    refused(nested)
    refused(b"\x93\x01\x02" + nested)
    refused(b"\x99\x01\x02" + nested + b"\0" * 6)
    refused(b"\x92" + nested + b"\x02")


# --- what is wrong with the message


@pytest.mark.parametrize("version", [0, 2, -1, 1 << 63, True, 1.0, "1", None, b"\1", [1], {}])
def test_another_version(version):
    text = refused(packed(version, 2, *HEARTBEAT))
    assert text.startswith("protocol version ")
    assert text.endswith("this side speaks 1")


@pytest.mark.parametrize("kind", [0, 11, 31, 45, -2, 1 << 63, True, 2.0, "2", None, b"\2", [2], {"a": 1}])
def test_an_unknown_kind(kind):
    assert refused(packed(PROTOCOL_VERSION, kind, *HEARTBEAT)).startswith("unknown message kind ")


@pytest.mark.parametrize("array", [None, 1, "text", b"bytes", {}, {"a": 2}, [], [1]])
def test_no_array_of_version_and_kind(array):
    assert refused(msgpack.packb(array)).startswith("not a message")


@pytest.mark.parametrize("count", [0, 1, 6, 8, 100])
def test_too_few_or_too_many_fields(count):
    fields = ([*HEARTBEAT] * 20)[:count]
    assert refused(packed(PROTOCOL_VERSION, 2, *fields)) == "Heartbeat: not an array of 7 fields"


NOT_INTS = [True, False, -1, 1 << 63, (1 << 64) - 1, -(1 << 63), 1.0, float("nan"), "1", b"1", None, [1], {}]


@pytest.mark.parametrize("value", NOT_INTS)
def test_what_is_no_int(value):
    assert refused(heartbeat_with(step=value)).startswith("Heartbeat.step: not an int in 0..2^63-1: ")


@pytest.mark.parametrize("value", [0, 1, "true", b"", None, [], 1.0])
def test_what_is_no_bool(value):
    assert refused(heartbeat_with(stopped=value)).startswith("Heartbeat.stopped: not a bool: ")


@pytest.mark.parametrize("value", [6, -1, True, 1.0, "COMPUTE", None, 1 << 63, [1]])
def test_what_is_no_member_of_an_enum(value):
    assert refused(heartbeat_with(phase=value)).startswith("Heartbeat.phase: not a Phase: ")


@pytest.mark.parametrize("value", [b"", b"x" * 15, b"x" * 17, b"x" * 100_000])
def test_a_wrong_length_is_named_with_its_bounds(value):
    assert refused(heartbeat_with(token=value)) == f"Heartbeat.token: length {len(value)} is not in 16..16"


@pytest.mark.parametrize(
    "value", ["x" * 16, 1, None, [b"x" * 16], msgpack.ExtType(5, b"x" * 16), msgpack.Timestamp(1)]
)
def test_what_is_no_bytes(value):
    assert refused(heartbeat_with(token=value)).startswith("Heartbeat.token: not bytes: ")


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), -1, -0.5, -5e-324, True, "1", b"1", None, [], {}]
)
def test_what_is_no_finite_positive_number(value):
    frame = packed(PROTOCOL_VERSION, 3, b"t" * 16, value, None)
    assert refused(frame).startswith("QuorumRequest.ttl_s: not a finite number >= 0: ")


def test_text_that_is_not_utf8():
    frame = heartbeat_with(token="x" * 16).replace(b"x" * 16, b"\xff" * 16)
    assert refused(frame) == f"not msgpack: UnicodeDecodeError in {len(frame)} bytes"


@pytest.mark.parametrize(
    "a_map",
    [b"\x81\x01\x01", b"\x82\x01\x01\x01\x02", b"\x82\xa1a\x01\xa1a\x02", b"\x81\x90\x01", b"\x81\x80\x01"],
)
def test_a_map_is_nothing_we_know_with_or_without_duplicate_keys(a_map):
    refused(a_map)
    refused(b"\x92\x01" + a_map)
    refused(b"\x99\x01\x02" + a_map + b"\0" * 6)


@pytest.mark.parametrize(
    "timestamp", [b"\xd6\xff" + bytes(4), b"\xc7\x0c\xff" + b"\xff" * 12, b"\xc7\x00\xff"]
)
def test_extension_types_are_nothing_we_know(timestamp):
    refused(timestamp)
    refused(b"\x92\x01" + timestamp)
    refused(b"\x99\x01\x02" + timestamp + b"\0" * 6)


def test_the_text_names_the_whole_path():
    participant = ["r0", [1, 1], 0, 0, 0, 1, "a", False, 0, b"", [["handle", 7]]]
    assert refused(packed(PROTOCOL_VERSION, 36, 1, [[1, 1], "job", [participant]])) == (
        "QuorumFormed.quorum > Quorum.participants > Participant.ranks > Rank.checkpoint_metadata: not str: 7"
    )
    participant[1] = [1]
    assert refused(packed(PROTOCOL_VERSION, 3, b"t" * 16, 1.0, participant)) == (
        "QuorumRequest.participant > Participant.incarnation > Incarnation: not an array of 2 fields"
    )
    participant[1], participant[10] = [1, 1], "ranks"
    assert refused(packed(PROTOCOL_VERSION, 3, b"t" * 16, 1.0, participant)) == (
        "QuorumRequest.participant > Participant.ranks: not an array: 'ranks'"
    )


def test_a_wrong_value_is_shown_short():
    assert refused(heartbeat_with(step="x" * 100_000)) == (
        "Heartbeat.step: not an int in 0..2^63-1: '" + "x" * 40 + "'"
    )
    assert refused(heartbeat_with(step=[1, 2])) == "Heartbeat.step: not an int in 0..2^63-1: a tuple"
