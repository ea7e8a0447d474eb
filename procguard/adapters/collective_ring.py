"""All-reduce in a ring: reduce-scatter, then all-gather (Patarasuk and Yuan, 2009), over two TCP links.

A buffer is cut into one segment a rank. In each of ``2 * (n - 1)`` steps a rank sends a segment to its
successor while it receives another from its predecessor: first the partial results travel, each rank adding
its own share, then the finished segments. Each segment is finished on one rank only and copied from there,
so all ranks end with the same bits.

Every segment follows a frame that says which step of which operation it belongs to. Ranks in step send
equal frames, so the check is one comparison; a difference means that the ranks do not call the same
collectives, and is explained instead of reduced.

A ring belongs to one I/O thread and works on ``Payload``'s private copy. It must never touch a caller's
buffer: only ``Payload.deliver`` does, when its caller has made sure that nobody has given up waiting.
"""

from __future__ import annotations

import math
import select
import socket
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from procguard.adapters.collective_links import Links, RingPlace, close_link, drain
from procguard.errors import CollectiveError, CollectiveTimeout, UsageError

DTYPES = tuple(np.dtype(name) for name in ("float16", "float32", "float64", "int32", "int64"))
OPS = ("sum", "avg", "max", "min")
_UFUNCS = {"sum": np.add, "avg": np.add, "max": np.maximum, "min": np.minimum}
_MAGIC = b"PGOP"
_FRAME = struct.Struct("!4sIQHHBB2xQ")  # magic, digest, sequence, part, step, op, dtype, elements of the part


class Payload:
    """One call's buffers, copied and flattened by dtype."""

    def __init__(self, buffers: Sequence[NDArray[Any]], op: str) -> None:
        _validate(buffers, op)
        self.op = op
        self.buffers = list(buffers)
        self.digest = zlib.crc32(repr((op, [(b.dtype.str, b.shape) for b in buffers])).encode())
        flats = {dtype: np.empty(sum(b.size for b in buffers if b.dtype == dtype), dtype) for dtype in DTYPES}
        offsets = dict.fromkeys(DTYPES, 0)
        self._views: list[NDArray[Any]] = []
        for buffer in buffers:
            start, end = offsets[buffer.dtype], offsets[buffer.dtype] + buffer.size
            offsets[buffer.dtype] = end
            self._views.append(flats[buffer.dtype][start:end].reshape(buffer.shape))
            np.copyto(self._views[-1], buffer)
        # Without any element there is still one exchange: the others may have come with something else.
        self.parts = [flat for flat in flats.values() if flat.size] or [flats[DTYPES[0]]]

    def deliver(self) -> list[NDArray[Any]]:
        """Copy the result into the caller's buffers and return these."""
        for buffer, view in zip(self.buffers, self._views, strict=True):
            np.copyto(buffer, view)
        return self.buffers


def _validate(buffers: Sequence[NDArray[Any]], op: str) -> None:
    if op not in OPS:
        raise UsageError(f"allreduce op {op!r} is unknown; use one of {', '.join(OPS)}")
    for index, buffer in enumerate(buffers):
        if not isinstance(buffer, np.ndarray):
            raise UsageError(f"allreduce buffer {index} is a {type(buffer).__name__}, not a numpy array")
        if buffer.dtype not in DTYPES:
            names = ", ".join(dtype.name for dtype in DTYPES)
            raise UsageError(f"allreduce buffer {index} has dtype {buffer.dtype!s}; use one of {names}")
        if not buffer.flags.writeable:
            raise UsageError(f"allreduce buffer {index} is read-only; the result is written into it")


class Ring:
    """The links of one formed ring, and the collective that runs over them."""

    def __init__(
        self, place: RingPlace, links: Links, wake: socket.socket, error: Callable[[], CollectiveError | None]
    ) -> None:
        self._place = place
        self._predecessor, self._successor = links
        self._wake = wake
        self._error = error  # why the quorum is over, if it is; ``wake`` becomes readable when that changes
        self._outgoing: list[memoryview] = []
        self._incoming: list[memoryview] = []
        self._frame = b""
        self._heard = memoryview(bytearray(_FRAME.size))
        self._scratch = np.empty(0, np.uint8)
        self._sequence = self._step = 0
        self._deadline = math.inf
        self._is_last_step = False

    def allreduce(self, payload: Payload, sequence: int, timeout_s: float) -> None:
        """Reduce ``payload`` in place. Raises ``CollectiveError``, after which the ring is of no more use."""
        self._sequence = sequence
        self._deadline = time.monotonic() + timeout_s
        with np.errstate(all="ignore"):  # infinities in a gradient are its owner's business
            for index, flat in enumerate(payload.parts):
                self._reduce(payload, index, flat)

    def _reduce(self, payload: Payload, part: int, flat: NDArray[Any]) -> None:
        rank, ranks = self._place.rank, self._place.world_size
        bounds = [flat.size * index // ranks for index in range(ranks + 1)]
        segments = [flat[bounds[i] : bounds[i + 1]] for i in range(ranks)]
        scratch_bytes = (flat.size // ranks + 1) * flat.itemsize
        if self._scratch.size < scratch_bytes:
            self._scratch = np.empty(scratch_bytes, np.uint8)
        scratch = self._scratch[:scratch_bytes].view(flat.dtype)
        code, dtype = OPS.index(payload.op), DTYPES.index(flat.dtype)
        for step in range(2 * (ranks - 1)):
            self._step = step
            self._is_last_step = step == 2 * (ranks - 1) - 1 and part == len(payload.parts) - 1
            self._frame = _FRAME.pack(
                _MAGIC, payload.digest, self._sequence, part, step, code, dtype, flat.size
            )
            outgoing = segments[(rank - step) % ranks]
            segment = segments[(rank - step - 1) % ranks]
            if step >= ranks - 1:  # all-gather: finished segments, kept as they come
                self._exchange(outgoing, segment)
                continue
            received = scratch[: segment.size]
            self._exchange(outgoing, received)
            _UFUNCS[payload.op](segment, received, out=segment)
            if payload.op == "avg" and step == ranks - 2:
                _divide(segment, ranks)

    def _exchange(self, outgoing: NDArray[Any], incoming: NDArray[Any]) -> None:
        """Send one segment and receive another at the same time: in turn, full buffers would deadlock."""
        self._outgoing = [memoryview(self._frame), outgoing.view(np.uint8).data]
        self._incoming = [self._heard, incoming.view(np.uint8).data]
        while True:
            if (error := self._error()) is not None:
                raise error
            has_sent = bool(self._outgoing) and self._push()
            has_received = bool(self._incoming) and self._pull()
            if not self._outgoing and not self._incoming:
                return
            if not has_sent and not has_received:
                self._wait()

    def _push(self) -> bool:
        try:
            sent = self._successor.sendmsg(self._outgoing)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._lost_successor() from error
        _consume(self._outgoing, sent)
        return True

    def _pull(self) -> bool:
        try:
            received = self._predecessor.recvmsg_into(self._incoming)[0]
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._lost(self._place.predecessor) from error
        if not received:
            raise self._lost(self._place.predecessor)
        is_frame_due = len(self._incoming) == 2
        _consume(self._incoming, received)
        if is_frame_due and len(self._incoming) < 2 and self._heard != self._frame:
            raise self._mismatch()
        return True

    def _wait(self) -> None:
        """Block until a link has room or data, the quorum is over, or the operation is out of time."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        if self._incoming:
            poller.register(self._predecessor, select.POLLIN)
        # Nothing comes from the successor: readable means that it is gone. It may be, once it has all.
        if self._outgoing:
            poller.register(self._successor, select.POLLIN | select.POLLOUT)
        elif not self._is_last_step:
            poller.register(self._successor, select.POLLIN)
        left_s = self._deadline - time.monotonic()
        events = dict(poller.poll(max(left_s, 0) * 1000))
        if self._wake.fileno() in events:
            drain(self._wake)
        if left_s <= 0:
            message = f"{self._operation()} took too long: waiting for {self.missing()}"
            raise CollectiveTimeout(message, self._place.quorum_id)
        if events.get(self._successor.fileno(), 0) & ~select.POLLOUT:
            raise self._lost_successor()

    def missing(self) -> str:
        """Whom the present step is waiting for. From any thread."""
        place, reasons = self._place, []
        if self._incoming:
            reasons.append(f"{place.name(place.predecessor)} to send")
        if self._outgoing:
            reasons.append(f"{place.name(place.successor)} to receive")
        steps = 2 * (place.world_size - 1)
        return f"{' and '.join(reasons) or 'this rank'} in step {self._step + 1} of {steps}"

    def close(self) -> None:
        close_link(self._predecessor)
        close_link(self._successor)

    def _operation(self) -> str:
        return f"allreduce {self._sequence} of {self._place}"

    def _lost_successor(self) -> CollectiveError:
        # Of two ranks it is the predecessor as well, and what it sent before it left may say why.
        while self._incoming and self._pull():
            pass
        return self._lost(self._place.successor)

    def _lost(self, rank: int) -> CollectiveError:
        message = (
            f"{self._operation()}: {self._place.name(rank)} closed its connection: "
            "its process died, or it aborted or failed itself"
        )
        return CollectiveError(message, self._place.quorum_id)

    def _mismatch(self) -> CollectiveError:
        name = self._place.name(self._place.predecessor)
        message = (
            f"{self._operation()} differs between ranks: {name} sent {_describe(bytes(self._heard))}, "
            f"this rank has {_describe(self._frame)}; all ranks must call the same collectives in the "
            "same order, with buffers of the same shapes and dtypes"
        )
        return CollectiveError(message, self._place.quorum_id)


def _consume(views: list[memoryview], count: int) -> None:
    while views and count >= len(views[0]):
        count -= len(views.pop(0))
    if count:
        views[0] = views[0][count:]


def _divide(segment: NDArray[Any], ranks: int) -> None:
    if segment.dtype.kind == "f":
        segment /= ranks
    else:
        segment //= ranks


def _describe(frame: bytes) -> str:
    magic, digest, sequence, part, step, op, dtype, size = _FRAME.unpack(frame)
    if magic != _MAGIC or op >= len(OPS) or dtype >= len(DTYPES):
        return "bytes that are no operation"
    return (
        f"{OPS[op]} of {size} {DTYPES[dtype].name} (operation {sequence}, part {part}, step {step}, "
        f"shapes {digest:08x})"
    )
