"""A state survives the stream exactly, what cannot is named, and no broken stream is ever believed."""

from __future__ import annotations

import collections
import contextlib
import io
import math
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procguard.client import state_stream
from procguard.client.state_stream import AHEAD_BYTES, DEPTH_MAX, PAGE_BYTES, TAKEN_BYTES, decode, encode
from procguard.errors import CheckpointError, UnsupportedState

LIMIT_BYTES = 1 << 30


def stream_of(state: Any) -> bytes:
    encoded = encode(state)
    stream = b"".join(encoded.parts())
    assert len(stream) == encoded.length_bytes
    return stream


def state_of(stream: bytes, length_bytes: int | None = None, limit_bytes: int = LIMIT_BYTES) -> Any:
    source = io.BytesIO(stream)

    def read_into(view: memoryview) -> None:
        if source.readinto(view) < len(view):
            raise CheckpointError("the stream ended early")

    return decode(read_into, len(stream) if length_bytes is None else length_bytes, limit_bytes)


def forged(structure: Any, lengths: Any = (), buffers: bytes = b"") -> bytes:
    """A stream whose checksums are right, whatever it says."""
    return sealed(msgpack.packb([structure, lengths])) + buffers


def sealed(header: bytes) -> bytes:
    head = struct.pack(">8sQ", b"PGSTATE2", len(header)) + header
    return head + struct.pack(">I", zlib.crc32(head))


def buffer(contents: bytes) -> bytes:
    return contents + struct.pack(">I", zlib.crc32(contents))


def identical(left: Any, right: Any) -> bool:
    """Equal, of the same types all the way down, to the bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return identical(list(left.items()), list(right.items()))
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(identical, left, right))
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right)
    if isinstance(left, (np.ndarray, np.generic)):
        same_form = left.dtype == right.dtype and left.shape == right.shape
        return (
            same_form and left.dtype.byteorder == right.dtype.byteorder and left.tobytes() == right.tobytes()
        )
    return bool(left == right)


# --- what survives ---


@pytest.mark.parametrize(
    "state",
    [
        *(None, True, False, 0, -1, 2**63 - 1, -(2**63), 2**64 - 1, 2**64, -(2**63) - 1, 10**5000, -(2**200)),
        *(0.0, -0.0, 1e-323, math.pi, math.inf, -math.inf, math.nan),
        *("", "weights", "żółw\0", "\ud800", b"", b"\0\xff", bytes(100_000)),
        *([], (), {}, [()], ([],), [[1], (1,)], (1, [2, (3, [4])])),
        {"1": "str", 1: "int", 2**70: "big", -1: [], "": {}},
        {"b": 1, "a": 2},
        collections.OrderedDict([("b", 1), ("a", {})]),
    ],
    ids=lambda state: type(state).__name__,
)
def test_plain_objects_survive_exactly(state: Any) -> None:
    assert identical(state_of(stream_of(state)), state)


BYTES = st.binary(max_size=30)
KEYS = st.text(max_size=5) | st.integers()
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | BYTES
STATES = st.recursive(
    LEAVES | BYTES.map(lambda raw: np.frombuffer(raw, np.uint8)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(STATES)
def test_any_combination_survives_exactly(state: Any) -> None:
    assert identical(state_of(stream_of(state)), state)


def test_nesting_survives_up_to_the_limit() -> None:
    state: Any = [7]
    for _ in range(DEPTH_MAX - 1):
        state = [state]
    assert state_of(stream_of(state)) == state


NUMBERS = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
ARRAYS = {
    "plain": NUMBERS,
    "no dimension": np.array(5.5),
    "empty": np.zeros((0, 3), np.int16),
    "empty and huge": np.zeros((0, 1 << 40), np.int8),
    "strided": NUMBERS[:, ::2, 1:],
    "reversed": NUMBERS[::-1],
    "transposed": NUMBERS.transpose(1, 0, 2),
    "broadcast": np.broadcast_to(np.float64(3), (4, 5)),
    "fortran": np.asfortranarray(NUMBERS),
    "big-endian": np.arange(5, dtype=">i8"),
    "bool": np.array([True, False]),
    "half": np.array([1, math.nan], np.float16),
    "long double": np.array([1, 2], np.longdouble),
    "complex": np.array([1j, 2], np.complex64),
    "dates": np.array(["2024-01-01", "NaT"], "M8[ns]"),
    "durations": np.array([3], "m8[25s]"),
    "text": np.array(["a", "żó"]),
    "byte strings": np.array([b"ab", b"c"]),
    "of no size": np.zeros(3, "S0"),
    "read-only": np.frombuffer(b"abc", np.uint8),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_numpy_arrays_survive_exactly(array: np.ndarray) -> None:
    state = state_of(stream_of({"w": array, "after": b"x"}))
    assert identical(state["w"], array)
    assert state["w"].flags.writeable
    assert state["after"] == b"x"


def test_fortran_order_stays_fortran_order() -> None:
    assert state_of(stream_of(ARRAYS["fortran"])).flags.f_contiguous


@pytest.mark.parametrize(
    "scalar",
    [
        np.float32(1.5),
        np.float64(math.nan),
        np.int64(-3),
        np.bool_(True),
        np.str_("ab"),
        np.datetime64("2024"),
    ],
    ids=repr,
)
def test_numpy_scalars_stay_scalars(scalar: Any) -> None:
    assert identical(state_of(stream_of([scalar])), [scalar])


def test_aliases_arrive_as_copies() -> None:
    first, second = state_of(stream_of([NUMBERS, NUMBERS]))
    assert identical(first, second)
    assert not np.shares_memory(first, second)


def test_torch_tensors_survive_exactly() -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    floats = [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.complex64]
    state = {
        "by type": [base.to(dtype) for dtype in (*floats, torch.int8, torch.uint16, torch.int64, torch.bool)],
        "strided": base[:, ::2, 1:],
        "transposed": base.permute(2, 0, 1),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "no dimension": torch.tensor(3.5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "expanded": torch.ones(1).expand(5),
        "special": torch.tensor([math.nan, math.inf, -0.0], dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "shown": torch.full((3,), 2.0, requires_grad=True) * 2,
    }
    arrived = state_of(stream_of(state))
    for sent, received in zip(flat(state), flat(arrived), strict=True):
        assert type(received) is torch.Tensor
        assert (received.dtype, received.shape, received.requires_grad) == (sent.dtype, sent.shape, False)
        bits = [
            bytes(t.detach().resolve_conj().contiguous().flatten().view(torch.uint8).tolist())
            for t in (sent, received)
        ]
        assert bits[0] == bits[1]


def test_a_torch_module_and_its_optimizer_survive() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    arrived = state_of(stream_of({"model": model.state_dict(), "optimizer": optimizer.state_dict()}))
    model.load_state_dict(arrived["model"])
    optimizer.load_state_dict(arrived["optimizer"])


def flat(state: Any) -> list[Any]:
    parts = state.values() if isinstance(state, dict) else state
    return [leaf for part in parts for leaf in (flat(part) if isinstance(part, (dict, list)) else [part])]


# --- how it gets there ---


def test_arrays_are_sent_from_where_they_stand() -> None:
    array = np.zeros(1000)
    encoded = encode({"w": array})
    assert any(np.shares_memory(np.frombuffer(part, np.uint8), array) for part in encoded.parts())
    array[:] = 7  # the live array, not a copy made by encode
    assert identical(state_of(b"".join(encoded.parts())), {"w": array})


def test_a_state_is_sent_as_often_as_it_is_asked_for() -> None:
    encoded = encode({"w": NUMBERS, "step": 3})
    assert b"".join(encoded.parts()) == b"".join(encoded.parts())


def test_large_buffers_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_stream, "SENT_BYTES", 100)
    monkeypatch.setattr(state_stream, "TAKEN_BYTES", 70)
    state = {"w": np.arange(64), "raw": bytes(range(201))}
    assert max(map(len, list(encode(state).parts())[1:])) == 100
    assert identical(state_of(stream_of(state)), state)


@pytest.mark.parametrize("state", [np.ones(1 << 20), bytes(8 << 20)], ids=["ndarray", "bytes"])
def test_neither_side_holds_a_second_copy(state: Any) -> None:
    encoded = encode(state)
    stream = b"".join(encoded.parts())
    source = memoryview(stream)
    position = 0

    def read_into(view: memoryview) -> None:
        nonlocal position
        view[:] = source[position : position + len(view)]
        position += len(view)

    def peak_bytes(work: Any) -> int:
        tracemalloc.start()
        try:
            work()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_bytes(lambda: [None for _ in encoded.parts()]) < 100_000
    assert peak_bytes(lambda: decode(read_into, len(stream), LIMIT_BYTES)) < (8 << 20) + 100_000


def test_numpy_and_torch_are_not_imported_for_a_state_without_them() -> None:
    program = """
import io, sys
from procguard.client.state_stream import decode, encode
stream = io.BytesIO(b"".join(encode({"step": (1, [2.0], b"x")}).parts()))
assert decode(stream.readinto, len(stream.getvalue()), 1000) == {"step": (1, [2.0], b"x")}
assert not {"numpy", "torch", "pickle"} & set(sys.modules), sys.modules.keys()
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 0, answer.stderr


def test_a_missing_numpy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = stream_of(NUMBERS)
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(CheckpointError, match="install numpy"):
        state_of(stream)


# --- what cannot be sent ---


class Pair(NamedTuple):
    left: int
    right: int


class OwnInt(int): ...


class OwnDict(dict[str, int]): ...


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (object(), "state: object of type builtins.object; allowed are None, bool, int"),
        ({"optim": [0, 1, 2, {"lr": {1, 2}}]}, "state['optim'][3]['lr']: object of type builtins.set"),
        ({"a": {7: (1, lambda: 0)}}, "state['a'][7][1]: object of type builtins.function"),
        ([bytearray(b"x")], "state[0]: object of type builtins.bytearray"),
        ([Pair(1, 2)], "state[0]: object of type test_state_stream.Pair"),
        ([OwnInt(1)], "state[0]: object of type test_state_stream.OwnInt"),
        ({"a": OwnDict()}, "state['a']: object of type test_state_stream.OwnDict"),
        ({"a": {True: 1}}, "state['a']: key True of type bool"),
        ({"a": {(1, 2): 1}}, "state['a']: key (1, 2) of type tuple"),
        ({None: 1}, "state: key None of type NoneType"),
        ({"w": np.array([object()])}, "state['w']: numpy array of dtype object"),
        ({"w": np.zeros(2, "i4,f4")}, "state['w']: numpy array of dtype [('f0'"),
        ({"w": np.zeros(2, "V3")}, "state['w']: numpy array of dtype |V3"),
        ({"w": np.zeros(2, "i4,f4")[0]}, "state['w']: numpy array of dtype [('f0'"),
        ({"w": np.ma.masked_array([1], [True])}, "state['w']: object of type numpy.ma"),
        ({"w": 1j}, "state['w']: object of type builtins.complex"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_sent_is_named(state: Any, said: str) -> None:
    with pytest.raises(UnsupportedState) as caught:
        encode(state)
    assert said in str(caught.value).replace("tests.client.", "")


def test_torch_tensors_that_are_not_dense_are_named() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(UnsupportedState, match=r"state\['w'\]: torch tensor that is not dense"):
        encode({"w": torch.eye(2).to_sparse()})
    with pytest.raises(UnsupportedState, match=r"state\['w'\]: torch tensor that is not dense"):
        encode({"w": torch.ones(2, device="meta")})
    with pytest.raises(UnsupportedState, match=r"state\[0\]: object of type torch.Size"):
        encode([torch.Size([1])])


def test_a_cycle_is_named() -> None:
    state: dict[str, Any] = {"inner": {}}
    state["inner"]["outer"] = state
    with pytest.raises(UnsupportedState, match=r"state\['inner'\]\['outer'\].*\.\.\..*contains itself"):
        encode(state)


def test_a_structure_that_is_too_large_is_refused_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_stream, "HEADER_BYTES_MAX", 1000)
    encode({"w": np.zeros(10_000)})
    with pytest.raises(CheckpointError, match="hold long lists of numbers in a numpy array"):
        encode(list(range(10_000)))


# --- what is not believed ---

STATE = {"step": 3, "w": np.arange(6, dtype=np.int16), "raw": b"abc", "empty": np.zeros(0), "at": (1.5, None)}


def test_every_flipped_byte_is_found() -> None:
    stream = stream_of(STATE)
    for position in range(len(stream)):
        for flip in (0x01, 0x80, 0xFF):
            broken = bytearray(stream)
            broken[position] ^= flip
            with pytest.raises(CheckpointError):
                state_of(bytes(broken))


def test_a_stream_that_ends_early_or_late_is_no_state() -> None:
    stream = stream_of(STATE)
    for length in range(len(stream)):
        with pytest.raises(CheckpointError, match="ended early"):
            state_of(stream[:length], len(stream))
        with pytest.raises(CheckpointError):
            state_of(stream[:length])
    with pytest.raises(CheckpointError, match="do not add up"):
        state_of(stream + b"x")


def test_swapped_buffers_are_found() -> None:
    first, second = buffer(b"aaaa"), buffer(b"bbbb")
    head = forged(["list", ["bytes"], ["bytes"]], [4, 4])
    assert state_of(head + first + second) == [b"aaaa", b"bbbb"]
    with pytest.raises(CheckpointError, match="checksum of buffer 0"):
        state_of(head + first[:4] + second[4:] + second[:4] + first[4:])


def test_the_checksum_of_an_array_is_that_of_the_sums_of_its_pages() -> None:
    contents = random.Random(7).randbytes(2 * PAGE_BYTES + 1001)
    words = [struct.unpack("<512Q", contents[at : at + PAGE_BYTES]) for at in (0, PAGE_BYTES)]
    sums = b"".join(struct.pack("<Q", sum(page) % 2**64) for page in words)
    expected = zlib.crc32(sums + contents[2 * PAGE_BYTES :])
    assert stream_of(np.frombuffer(contents, "u1"))[-4:] == struct.pack(">I", expected)


def changed_byte(contents: bytearray, at: int) -> None:
    contents[at] ^= 1 << at % 8


def page_swapped_with_the_first(contents: bytearray, at: int) -> None:
    page = slice(at // PAGE_BYTES * PAGE_BYTES, (at // PAGE_BYTES + 1) * PAGE_BYTES)
    contents[page], contents[:PAGE_BYTES] = contents[:PAGE_BYTES], contents[page]


def page_twice(contents: bytearray, at: int) -> None:
    page = at // PAGE_BYTES * PAGE_BYTES
    contents[page : page + PAGE_BYTES] = contents[page - PAGE_BYTES : page]


@pytest.mark.parametrize("damage", [changed_byte, page_swapped_with_the_first, page_twice])
def test_damage_to_an_array_of_several_pieces_is_found(damage: Callable[[bytearray, int], None]) -> None:
    drawn = random.Random(7)
    array = np.frombuffer(drawn.randbytes(2 * TAKEN_BYTES + PAGE_BYTES + 5), "u1")
    stream = stream_of(array)
    assert identical(state_of(stream), array)
    head = len(stream) - len(array) - 4
    last_page = 2 * TAKEN_BYTES + PAGE_BYTES - 1
    for at in (
        PAGE_BYTES,
        TAKEN_BYTES,
        last_page,
        *(drawn.randrange(PAGE_BYTES, last_page) for _ in range(9)),
    ):
        contents = bytearray(array)
        damage(contents, at)
        with pytest.raises(CheckpointError, match="checksum of buffer 0"):
            state_of(stream[:head] + contents + stream[-4:])


def test_memory_is_prepared_before_it_is_filled_and_all_of_it() -> None:
    array = np.ones(AHEAD_BYTES + 3 * TAKEN_BYTES + 1, "u1")
    stream = io.BytesIO(stream_of([array, b"x" * (2 * TAKEN_BYTES), array[:TAKEN_BYTES]]))
    prepared: list[tuple[int, int]] = []
    filled: list[tuple[tuple[int, int], list[tuple[int, int]]]] = []

    def place(view: memoryview) -> tuple[int, int]:
        address = np.frombuffer(view, "u1").ctypes.data
        return address, address + len(view)

    def read_into(view: memoryview) -> None:
        filled.append((place(view), merged(prepared)))
        stream.readinto(view)

    length = len(stream.getvalue())
    state = decode(read_into, length, length, lambda view: prepared.append(place(view)))
    assert identical(state[0], array)
    whole = place(memoryview(state[0]))
    assert merged(prepared) == [whole], "of large arrays alone"
    pieces = [(end, so_far) for (start, end), so_far in filled if whole[0] <= start < whole[1]]
    assert len(pieces) == AHEAD_BYTES // TAKEN_BYTES + 4
    assert all(so_far[0][0] == whole[0] and so_far[0][1] >= end for end, so_far in pieces)


def merged(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same, where one begins at another's end as one."""
    whole: list[tuple[int, int]] = []
    for start, end in places:
        follows = whole and whole[-1][1] == start
        whole.append((whole.pop()[0] if follows else start, end))
    return whole


def test_a_state_beyond_the_limit_is_refused_unread() -> None:
    stream = stream_of(STATE)
    assert identical(state_of(stream, limit_bytes=len(stream)), STATE)
    with pytest.raises(CheckpointError, match="more than the"):
        decode(lambda view: pytest.fail("read"), len(stream), len(stream) - 1)


MALFORMED = {
    "a map": {"a": 1},
    "bytes in the structure": b"x",
    "an extension": msgpack.ExtType(5, b"x"),
    "a time": msgpack.Timestamp(1, 2),
    "no tag": [],
    "an unknown tag": ["set", 1],
    "a tag that is no str": [["list"]],
    "a key without a value": ["dict", "a"],
    "a key twice": ["dict", "a", 1, "a", 2],
    "a key twice in two spellings": ["dict", 1, 1, ["int", b"\1"], 2],
    "a list as key": ["dict", ["list"], 1],
    "a tuple as key": ["dict", ["tuple"], 1],
    "a bool as key": ["dict", True, 1],
    "an int that is no bytes": ["int", 5],
    "a buffer that is not there": ["bytes"],
    "an array without its buffer": ["ndarray", "<f4", [0], False],
}


@pytest.mark.parametrize("structure", MALFORMED.values(), ids=MALFORMED)
def test_malformed_structures_are_refused(structure: Any) -> None:
    with pytest.raises(CheckpointError):
        state_of(forged(structure))


@pytest.mark.parametrize(
    "node",
    [
        ["ndarray", "<f4", [3], False],
        ["ndarray", "<f4", [-1, -2], False],
        ["ndarray", "<f4", [2.0], False],
        ["ndarray", "<f4", [True, 2], False],
        ["ndarray", "<f4", [2], 0],
        ["ndarray", "<f4", 2, False],
        ["ndarray", "|O8", [1], False],
        ["ndarray", "|V8", [1], False],
        ["ndarray", "<f3", [1], False],
        ["ndarray", "<f4,<f4", [1], False],
        ["ndarray", "<M8[nonsense]", [1], False],
        ["ndarray", "<i4", [1] * 70 + [2], False],
        ["ndarray", "<i4", [0, 1 << 62, 1 << 62], False],
        ["ndarray", "<U999999999", [1], False],
        ["numpy_scalar", ["ndarray", "<f4", [2], False]],
        ["numpy_scalar", 5],
        ["tensor", "os", [1]],
        ["tensor", "float32", [3]],
        ["tensor", "float32", [-1]],
        ["tensor", "quint4x2", [8]],
    ],
    ids=repr,
)
def test_arrays_that_are_not_what_they_say_are_refused(node: Any) -> None:
    for length in (8, 0):
        with pytest.raises(CheckpointError):
            state_of(forged(node, [length], buffer(bytes(length))))


def test_a_shape_without_end_is_not_multiplied_out() -> None:
    """The product of so many would have 18 million bits, and takes minutes."""
    shape = [1 << 62] * 300_000
    with pytest.raises(CheckpointError, match="numpy array of dtype"):
        state_of(forged(["ndarray", "<f4", shape, False], [0], buffer(b"")))


def test_a_buffer_that_nobody_names_is_refused() -> None:
    with pytest.raises(CheckpointError, match="1 buffers that the structure does not name"):
        state_of(forged(["list"], [4], buffer(b"abcd")))


@pytest.mark.parametrize(
    "header", [b"", b"\xc1", b"\x91", msgpack.packb([1]), msgpack.packb([1, 2]), b"\x91" * 5000]
)
def test_headers_that_are_none_are_refused(header: bytes) -> None:
    with pytest.raises(CheckpointError, match="malformed"):
        state_of(sealed(header))


@pytest.mark.parametrize("lengths", [[-1], [1.0], [True], ["1"], [None]], ids=repr)
def test_lengths_that_are_no_counts_are_refused(lengths: Any) -> None:
    with pytest.raises(CheckpointError, match="malformed"):
        state_of(forged(["bytes"], lengths, buffer(b"x")))


def test_a_structure_nested_too_deeply_is_refused() -> None:
    structure: list[Any] = ["list"]
    for _ in range(DEPTH_MAX + 1):
        structure = ["list", structure]
    with pytest.raises(CheckpointError, match="nested deeper"):
        state_of(forged(structure))


def test_declared_sizes_allocate_nothing() -> None:
    huge = 1 << 50
    declared_header = struct.pack(">8sQ", b"PGSTATE2", huge)
    declared_buffer = forged(["bytes"], [huge])
    declared_array = forged(["ndarray", "<f8", [huge // 8], False], [huge])
    tracemalloc.start()
    try:
        for stream in (declared_header, declared_buffer, declared_array):
            with pytest.raises(CheckpointError):
                state_of(stream + bytes(64), limit_bytes=huge * 2)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


NODES = st.recursive(
    LEAVES
    | st.sampled_from(["list", "tuple", "dict", "int", "bytes", "ndarray", "<f4", "numpy_scalar", "tensor"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=15,
)


@given(NODES, st.lists(st.integers(0, 16), max_size=3))
def test_no_structure_raises_anything_else(structure: Any, lengths: list[int]) -> None:
    buffers = b"".join(buffer(bytes(length)) for length in lengths)
    try:
        header = msgpack.packb([structure, lengths], unicode_errors="surrogatepass")
    except OverflowError:
        return  # an int that msgpack cannot hold
    with contextlib.suppress(CheckpointError):
        state_of(sealed(header) + buffers)


@given(st.binary(max_size=100))
def test_no_header_raises_anything_else(header: bytes) -> None:
    with pytest.raises(CheckpointError):
        state_of(sealed(header))
