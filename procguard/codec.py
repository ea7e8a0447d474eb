"""msgpack frames to messages and back. Raises only ``ProtocolError``.

A frame is one msgpack array ``[version, kind, field, field, ...]``. The checks are built once, from the
annotations of the ``NamedTuple`` classes, so the schema is written in one place: ``messages``. Nothing a
peer sends is trusted before it has passed them, and nothing is ever unpickled or evaluated.

Kinds of which many come are looked at as a whole first (``codec_glances``). The checks here have the last
word on what is wrong, and the only one on how to say it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Mapping
from enum import IntEnum
from math import isfinite
from typing import Annotated, Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

import msgpack

from procguard.codec_glances import BYTES_SIZE, INT_MAX, TEXT_SIZE, Glance, glance_of
from procguard.errors import ProtocolError
from procguard.messages import (
    KINDS,
    PROTOCOL_VERSION,
    Heartbeat,
    Message,
    QuorumFormed,
    QuorumRequest,
    Size,
)

SHOWN_CHARACTERS_MAX = 40

Check = Callable[[Any], Any]
M = TypeVar("M")


class _Bad(Exception):
    """Why a value is wrong; the path to it is put in front on the way out."""

    def __init__(self, why: str, path: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.path = path


def _shown(value: Any) -> str:
    """A wrong value for the error text. Of a container only its type: a peer can send one that is a
    million long, or nested deeper than ``repr`` can follow."""
    if isinstance(value, (str, bytes)):
        return f"{value[:SHOWN_CHARACTERS_MAX]!r}"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    return f"a {type(value).__name__}"


class Codec(Generic[M]):
    """Encodes and decodes the messages of one table of kinds.

    Args:
        version: first element of every frame; a frame of another version is refused.
        kinds: number on the wire to ``NamedTuple`` class.
        busy: those of which many come.
    """

    def __init__(self, version: int, kinds: Mapping[int, type[M]], busy: Collection[type[M]] = ()) -> None:
        self._version = version
        self._numbers = {message: number for number, message in kinds.items()}
        self._checks = {number: _check_of(message) for number, message in kinds.items()}
        for message in busy:
            number = self._numbers[message]
            self._checks[number] = _glancing(message, self._checks[number])

    def encode(self, message: M) -> bytes:
        """One frame of a message that is correct by construction."""
        head = (self._version, self._numbers[type(message)])
        packed: bytes = msgpack.packb(head + tuple(message))  # type: ignore[arg-type]
        return packed

    def decode(self, frame: bytes) -> M:
        """The message in a frame.

        Raises:
            ProtocolError: whatever is wrong with it; the text names the field.
        """
        try:
            array = msgpack.unpackb(frame, use_list=False)
        except Exception as error:  # noqa: BLE001  msgpack raises half a dozen unrelated types on garbage
            raise ProtocolError(f"not msgpack: {type(error).__name__} in {len(frame)} bytes") from None
        return self.check(array)

    def check(self, array: object) -> M:
        """The message in an already unpacked array. Raises ``ProtocolError``."""
        if type(array) is not tuple or len(array) < 2:
            raise ProtocolError("not a message: a frame is an array [version, kind, ...]")
        if type(array[0]) is not int or array[0] != self._version:
            raise ProtocolError(f"protocol version {_shown(array[0])}, this side speaks {self._version}")
        check = self._checks.get(array[1]) if type(array[1]) is int else None
        if check is None:
            raise ProtocolError(f"unknown message kind {_shown(array[1])}")
        try:
            return check(array[2:])  # type: ignore[no-any-return]
        except _Bad as bad:
            raise ProtocolError(f"{bad.path}: {bad.why}") from None


def _check_of(kind: Any) -> Check:
    """The check for one annotation; ``kind`` is a type, an alias or a ``NamedTuple`` class."""
    size = None
    if get_origin(kind) is Annotated:
        kind, size = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return _optional(_check_of(next(k for k in get_args(kind) if k is not type(None))))
    if get_origin(kind) is tuple:
        items = get_args(kind)
        return _sequence(_check_of(items[0])) if items[-1] is Ellipsis else _pair(items)
    if issubclass(kind, tuple):
        return _record(kind)
    if issubclass(kind, IntEnum):
        return _enum(kind)
    return {
        bool: _bool,
        int: _int,
        float: _float,
        str: _sized(str, size or TEXT_SIZE),
        bytes: _sized(bytes, size or BYTES_SIZE),
    }[kind]


def _int(value: Any) -> Any:
    if type(value) is not int or not 0 <= value <= INT_MAX:
        raise _Bad(f"not an int in 0..2^63-1: {_shown(value)}")
    return value


def _float(value: Any) -> Any:
    if type(value) not in (float, int) or not isfinite(value) or value < 0:
        raise _Bad(f"not a finite number >= 0: {_shown(value)}")
    return float(value)


def _bool(value: Any) -> Any:
    if type(value) is not bool:
        raise _Bad(f"not a bool: {_shown(value)}")
    return value


def _sized(kind: type[str] | type[bytes], size: Size) -> Check:
    low, high = size

    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise _Bad(f"not {kind.__name__}: {_shown(value)}")
        if not low <= len(value) <= high:
            raise _Bad(f"length {len(value)} is not in {low}..{high}")
        return value

    return check


def _optional(inner: Check) -> Check:
    return lambda value: None if value is None else inner(value)


def _enum(kind: type[IntEnum]) -> Check:
    members = {int(member): member for member in kind}

    def check(value: Any) -> Any:
        member = members.get(value) if type(value) is int else None
        if member is None:
            raise _Bad(f"not a {kind.__name__}: {_shown(value)}")
        return member

    return check


def _sequence(inner: Check) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not tuple:
            raise _Bad(f"not an array: {_shown(value)}")
        return tuple([inner(item) for item in value])

    return check


def _pair(kinds: tuple[Any, ...]) -> Check:
    checks = [_check_of(kind) for kind in kinds]

    def check(value: Any) -> Any:
        if type(value) is not tuple or len(value) != len(checks):
            raise _Bad(f"not an array of {len(checks)}: {_shown(value)}")
        return tuple([inner(item) for inner, item in zip(checks, value, strict=True)])

    return check


def _record(kind: Any) -> Check:
    """The check of a ``NamedTuple`` class: each field by its annotation, then the class itself."""
    hints = get_type_hints(kind, include_extras=True)
    checks = [_check_of(hints[name]) for name in kind._fields]
    count = len(checks)
    make = kind._make

    def check(value: Any) -> Any:
        if type(value) is not tuple or len(value) != count:
            raise _Bad(f"not an array of {count} fields", kind.__name__)
        checked: list[Any] = []
        try:
            for inner, item in zip(checks, value):  # noqa: B905  same length; the argument costs 10 %
                checked.append(inner(item))
        except _Bad as bad:
            at = f"{kind.__name__}.{kind._fields[len(checked)]}"
            raise _Bad(bad.why, f"{at} > {bad.path}" if bad.path else at) from None
        return make(checked)

    return check


def _glancing(kind: Any, check: Check) -> Check:
    """The same check, with a glance before it; compiled when the first message comes, for most programs
    never see most kinds, and a listener has to start quickly."""
    glance: Glance | None = None

    def glancing(value: Any) -> Any:
        nonlocal glance
        if glance is None:
            glance = glance_of(kind)
        message = glance(value)
        return check(value) if message is None else message

    return glancing


WIRE: Codec[Message] = Codec(PROTOCOL_VERSION, KINDS, busy=(Heartbeat, QuorumRequest, QuorumFormed))
encode = WIRE.encode
decode = WIRE.decode
