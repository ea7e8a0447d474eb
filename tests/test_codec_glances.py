"""A glance takes every message that is right, and nothing that the thorough checks would not take."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procguard.codec import Codec, encode
from procguard.codec_glances import INT_MAX, glance_of
from procguard.errors import ProtocolError
from procguard.messages import KIND_OF, KINDS, PROTOCOL_VERSION, Phase, Size
from tests.test_codec import built, packed, same_types

THOROUGH: Codec[Any] = Codec(PROTOCOL_VERSION, KINDS)
QUICK: Codec[Any] = Codec(PROTOCOL_VERSION, KINDS, busy=tuple(KINDS.values()))
GLANCES = {kind: glance_of(kind) for kind in KINDS.values()}

ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(),
    st.text(max_size=17),
    st.binary(max_size=17),
    st.sampled_from([0, 1, 5, 6, INT_MAX, INT_MAX + 1, -1, b"t" * 16, "t" * 16, msgpack.ExtType(5, b"ab")]),
    st.lists(st.integers(-1, 2), max_size=3),
    st.dictionaries(st.integers(0, 2), st.integers(0, 2), max_size=3),
)


def unpacked(frame: bytes) -> tuple[Any, ...]:
    array: tuple[Any, ...] = msgpack.unpackb(frame, use_list=False)
    return array


def with_an_odd_value(array: Any, data: st.DataObject) -> Any:
    """The same with one thing in it, at whatever depth, put in the place of another, added or left out."""
    if not isinstance(array, tuple) or not array or data.draw(st.integers(0, 3)) == 0:
        return data.draw(ODD_VALUES)
    at = data.draw(st.integers(0, len(array) - 1))
    inside = data.draw(st.integers(0, 9))
    if inside == 0:
        return array[:at] + array[at + 1 :]
    if inside == 1:
        return (*array, data.draw(ODD_VALUES))
    return (*array[:at], with_an_odd_value(array[at], data), *array[at + 1 :])


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_a_glance_takes_every_message_that_is_right(kind: Any) -> None:
    @given(built(kind))
    def check(message: Any) -> None:
        assert same_types(GLANCES[kind](unpacked(encode(message))[2:]), message)

    check()


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_with_and_without_a_glance_it_is_the_same_message_or_the_same_error(kind: Any) -> None:
    @given(built(kind), st.data())
    def check(message: Any, data: st.DataObject) -> None:
        fields = with_an_odd_value(unpacked(encode(message))[2:], data)
        frame = packed(PROTOCOL_VERSION, KIND_OF[kind], *(fields if isinstance(fields, tuple) else [fields]))
        assert same_types(outcome(QUICK, frame), outcome(THOROUGH, frame))

    check()


def outcome(codec: Codec[Any], frame: bytes) -> Any:
    try:
        return codec.decode(frame)
    except ProtocolError as error:
        return str(error)


@pytest.mark.parametrize("depth", [1, 100, 600])
def test_what_is_nested_deeply_is_not_followed(depth: int) -> None:
    nested: Any = ()
    for _ in range(depth):
        nested = (nested,)
    for glance in GLANCES.values():
        assert glance(nested) is None


def test_what_is_no_array_is_no_message() -> None:
    for nothing in (None, 1, "text", b"bytes", {}, [], msgpack.ExtType(5, b"ab")):
        assert [glance(nothing) for glance in GLANCES.values()] == [None] * len(GLANCES)


def test_values_that_are_false_are_values() -> None:
    class Plain(NamedTuple):
        flags: tuple[bool, ...]
        numbers: tuple[float, ...]
        phases: tuple[Phase, ...]
        pair: tuple[int, Annotated[str, Size(0, 1)]]
        missing: bytes | None

    glance = glance_of(Plain)
    right = ((False,), (0,), (0,), (0, ""), None)
    assert same_types(glance(right), Plain((False,), (0.0,), (Phase.STARTING,), (0, ""), None))
    assert glance(((0,), *right[1:])) is None
    assert glance((*right[:3], (0, "ab"), None)) is None
    assert glance((*right[:4], "")) is None
