"""Every decoder that reads what others wrote, against frames that are nearly right.

A decoder may do one of two things with whatever it is given: return something that is the same once more
after it was encoded and decoded, or raise the one error that it promises. A hang, a crash, any other
exception, or a quick look (``codec_glances``) that sees something else than the thorough one, is a failure;
it is printed with the command that replays it.

Input number ``n`` of a seed is the same wherever and whenever it is made, so any of ten million can be
looked at alone.
"""

from __future__ import annotations

import os
import socket
import struct
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from random import Random
from typing import Any, NamedTuple

import click
import numpy as np
import psutil

from benchmarks.report import Case, Report, Target, new_report
from fuzz import control_lines
from fuzz.mutation import Frame, Mutator, frame_of, frames_of
from procguard.adapters.torchft.manager_words import MANAGER, Describe, Described, ItIsAt, WhereIs
from procguard.client import state_stream
from procguard.client.group_words import GROUP, FromRank, FromServer
from procguard.client.link import Link, link_pair
from procguard.client.link_words import LINK, FromListener, FromTrainer
from procguard.codec import WIRE, Codec
from procguard.errors import CheckpointError, ProtocolError
from procguard.guard_messages import GUARD, FromGuard, FromWorker
from procguard.messages import KINDS, PROTOCOL_VERSION

MEBIBYTE = 1 << 20
CHUNK_COUNT = 20_000
CHUNKS_AHEAD_PER_WORKER = 2
FRAMES_EACH = 12
"""Right frames of each kind, of which hostile ones are made."""
CORPUS_SEED = 7
SEED_BITS = 64
ERROR_CHARACTERS_MAX = 300
STATE_BYTES_MAX = MEBIBYTE
SLOW_S = 1.0
"""Of CPU: an input that costs so much is a way to stop us."""
RSS_GROWTH_MIB_MAX = 64
FAILURES_SHOWN_MAX = 10

THOROUGH: Codec[Any] = Codec(PROTOCOL_VERSION, KINDS)
QUICK: Codec[Any] = Codec(PROTOCOL_VERSION, KINDS, busy=tuple(KINDS.values()))


class Broken(Exception):
    """A promise that was not kept; says which."""


class Decoder(NamedTuple):
    """One that is tried."""

    hostile: Callable[[Random], bytes]
    """Makes an input."""
    judge: Callable[[bytes], bool]
    """Whether it was taken for something; raises ``Broken``, or whatever the decoder should not have."""


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types: tuples of different classes are equal, and so are True and 1."""
    if type(one) is not type(other):
        return False
    if not isinstance(one, tuple):
        return bool(one == other)
    return len(one) == len(other) and all(map(same, one, other))


# --- messages -----------------------------------------------------------------------------------------


def outcome(codec: Codec[Any], payload: bytes) -> Any:
    """The message, or the text of the error."""
    try:
        return codec.decode(payload)
    except ProtocolError as error:
        return str(error)


def judge_message(codec: Codec[Any], payload: bytes) -> bool:
    found = outcome(codec, payload)
    if isinstance(found, str):
        if len(found) > ERROR_CHARACTERS_MAX:
            raise Broken(f"an error text of {len(found)} characters")
        return False
    again = codec.decode(codec.encode(found))
    if not same(again, found):
        raise Broken(f"{found!r} came back as {again!r}")
    return True


def judge_wire(payload: bytes) -> bool:
    """As above, and no way to look at it sees anything else."""
    taken = judge_message(WIRE, payload)
    found = outcome(WIRE, payload)
    for name, codec in (("thorough", THOROUGH), ("quick", QUICK)):
        if not same(found, seen := outcome(codec, payload)):
            raise Broken(f"the {name} look sees {seen!r} instead of {found!r}")
    return taken


def judge_link(payload: bytes) -> bool:
    """As a trainer takes what stands in its link, until it takes the link for over."""
    ours, theirs = link_pair()
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MEBIBYTE)
        theirs.sendall(payload)
        theirs.shutdown(socket.SHUT_WR)
        link = Link(ours)
        taken = False
        while (messages := link.receive()) is not None:
            for message in messages:
                taken = True
                if not same(LINK.decode(LINK.encode(message)), message):
                    raise Broken(f"{message!r} came back as another")
    return taken


# --- states -------------------------------------------------------------------------------------------


class Cut(Exception):
    """The stream ended; what a connection would raise."""


class State(NamedTuple):
    """A right stream, and its header's values."""

    head: Frame
    body: bytes
    """All that follows the header and its checksum."""


def states() -> Iterator[Any]:
    yield {"step": 7, "lr": 0.1, "name": "r0", "flags": [True, None], "big": 1 << 200, "raw": b"abc"}
    yield {"w": np.arange(6, dtype="<f4").reshape(2, 3), "t": np.asfortranarray(np.ones((2, 2))), 3: (1, 2)}
    yield [np.float64(0.5), np.array([], dtype="<i8"), np.array(["ab", "c"]), b"", "half \ud800"]
    yield (np.arange(3).astype("M8[s]"), np.array([True, False]), {"deep": [[[[[1]]]]]})


class StateStreams:
    """Streams whose checksums are right though they are not: an honest line from a hostile source."""

    def __init__(self) -> None:
        self._states = [self._state(state) for state in states()]
        self._mutator = Mutator([state.head for state in self._states])

    def _state(self, state: Any) -> State:
        stream = b"".join(state_stream.encode(state).parts())
        (head_bytes,) = struct.unpack_from(">Q", stream, 8)
        return State(frame_of(stream[16 : 16 + head_bytes]), stream[16 + head_bytes + 4 :])

    def hostile(self, rng: Random) -> bytes:
        state = rng.choice(self._states)
        head = self._mutator.hostile(rng, state.head)
        claimed = len(head) if rng.random() < 0.95 else rng.getrandbits(rng.choice([8, 24, 64]))
        stream = state_stream.MAGIC + struct.pack(">Q", claimed) + head
        stream += struct.pack(">I", zlib.crc32(stream)) + state.body
        return stream if rng.random() < 0.9 else stream[: rng.randint(0, len(stream))]

    def judge(self, payload: bytes) -> bool:
        try:
            state = decoded_state(payload)
        except (CheckpointError, Cut):
            return False
        first = b"".join(state_stream.encode(state).parts())
        if b"".join(state_stream.encode(decoded_state(first)).parts()) != first:
            raise Broken("a state that was taken is another one after it was sent on")
        return True


def decoded_state(stream: bytes) -> Any:
    read = 0

    def read_into(view: memoryview) -> None:
        nonlocal read
        if read + len(view) > len(stream):
            raise Cut
        view[:] = stream[read : read + len(view)]
        read += len(view)

    return state_stream.decode(read_into, len(stream), STATE_BYTES_MAX)


# --- all of them --------------------------------------------------------------------------------------


def decoders() -> dict[str, Decoder]:
    """By name. What they are given depends on nothing but the ``Random`` that they are given it with."""
    rng = Random(CORPUS_SEED)
    wire = Mutator(frames_of(WIRE, KINDS.values(), rng, FRAMES_EACH))
    link_kinds = (FromTrainer | FromListener).__args__
    link = Mutator(frames_of(LINK, link_kinds, rng, FRAMES_EACH))
    group = Mutator(frames_of(GROUP, (FromRank | FromServer).__args__, rng, FRAMES_EACH))
    guard = Mutator(frames_of(GUARD, (FromWorker | FromGuard).__args__, rng, FRAMES_EACH))
    manager = Mutator(frames_of(MANAGER, (Describe, WhereIs, Described, ItIsAt), rng, FRAMES_EACH))
    streams = StateStreams()
    return {
        "wire": Decoder(wire.hostile, judge_wire),
        "group": Decoder(group.hostile, lambda payload: judge_message(GROUP, payload)),
        "guard": Decoder(guard.hostile, lambda payload: judge_message(GUARD, payload)),
        "manager": Decoder(manager.hostile, lambda payload: judge_message(MANAGER, payload)),
        "link": Decoder(link.hostile, judge_link),
        "state": Decoder(streams.hostile, streams.judge),
        "control": Decoder(control_lines.hostile, control_lines.judge),
    }


TURNS = ("wire",) * 6 + ("guard", "group", "link", "state", "control", "manager")
"""Whose turn input ``n`` is, by ``n`` modulo their number."""


class Failure(NamedTuple):
    number: int
    decoder: str
    text: str


class Chunk(NamedTuple):
    """What came of some inputs."""

    pid: int
    inputs: int
    rss_mib: float
    seconds: float
    taken: Mapping[str, int]
    refused: Mapping[str, int]
    slowest_s: float
    slowest: int
    failures: Sequence[Failure]


def payload_of(tried: Mapping[str, Decoder], seed: int, number: int, rng: Random) -> tuple[str, bytes]:
    """The decoder whose turn it is, and its input."""
    rng.seed(number << SEED_BITS | seed)
    name = TURNS[number % len(TURNS)]
    return name, tried[name].hostile(rng)


_TRIED: dict[str, Decoder] = {}


def try_some(seed: int, first: int, count: int) -> Chunk:
    """Inputs ``first`` to ``first + count - 1`` of a seed."""
    if not _TRIED:  # once a process
        _TRIED.update(decoders())
    taken: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    failures: list[Failure] = []
    rng = Random()
    started = time.perf_counter()
    slowest_s, slowest = 0.0, first
    for number in range(first, first + count):
        name, payload = payload_of(_TRIED, seed, number, rng)
        before = time.thread_time()  # the clock of the wall counts how crowded the machine is
        try:
            (taken if _TRIED[name].judge(payload) else refused)[name] += 1
        except BaseException as error:  # noqa: BLE001  whatever a decoder raises is what is looked for
            failures.append(Failure(number, name, f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS_MAX]))
        took_s = time.thread_time() - before
        if took_s > slowest_s:
            slowest_s, slowest = took_s, number
    if slowest_s > SLOW_S:
        name = TURNS[slowest % len(TURNS)]
        failures.append(Failure(slowest, name, f"took {slowest_s:.1f} s of CPU"))
    rss_mib = psutil.Process().memory_info().rss / MEBIBYTE
    seconds = time.perf_counter() - started
    return Chunk(os.getpid(), count, rss_mib, seconds, taken, refused, slowest_s, slowest, failures)


def try_all(seed: int, first: int, count: int, workers: int) -> Iterator[Chunk]:
    """Spread over so many processes. Raises ``Broken`` when one of them dies."""
    orders = iter(range(first, first + count, CHUNK_COUNT))
    under_way: deque[tuple[int, Future[Chunk]]] = deque()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while True:
            for start in islice(orders, workers * CHUNKS_AHEAD_PER_WORKER - len(under_way)):
                some = min(CHUNK_COUNT, first + count - start)
                under_way.append((start, pool.submit(try_some, seed, start, some)))
            if not under_way:
                return
            start, future = under_way.popleft()
            try:
                yield future.result()
            except BrokenProcessPool:
                where = f"--seed {seed} --first {start} --inputs {CHUNK_COUNT * (1 + len(under_way))}"
                raise Broken(f"a decoder killed its process: python -m fuzz.codec {where}") from None


class Total:
    """What came of all inputs so far."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self._rss_first: dict[int, float] = {}
        self._rss_last: dict[int, float] = {}

    def add(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self._rss_first.setdefault(chunk.pid, chunk.rss_mib)
        self._rss_last[chunk.pid] = chunk.rss_mib

    @property
    def failures(self) -> list[Failure]:
        return [failure for chunk in self.chunks for failure in chunk.failures]

    @property
    def rss_growth_mib(self) -> float:
        """Of all workers together, since each has ended its first chunk."""
        return sum(self._rss_last[pid] - first for pid, first in self._rss_first.items())

    def report(self, seconds: float) -> Report:
        report = new_report("fuzz.codec")
        workers = len(self._rss_first)
        for name in dict.fromkeys(TURNS):
            taken = sum(chunk.taken.get(name, 0) for chunk in self.chunks)
            refused = sum(chunk.refused.get(name, 0) for chunk in self.chunks)
            share = 100 * taken / max(1, taken + refused)
            note = f"{taken + refused} inputs, {taken} taken and {refused} refused"
            report.cases.append(Case.of(name, workers, [share], note, "% taken"))
        count = sum(chunk.inputs for chunk in self.chunks)
        each_us = [chunk.seconds * 1e6 / chunk.inputs for chunk in self.chunks]
        note = f"{count} inputs in {seconds:.0f} s"
        report.cases.append(Case.of("all, with making them", workers, each_us, note, "us an input"))
        slowest = max(self.chunks, key=lambda chunk: chunk.slowest_s)
        note = f"number {slowest.slowest}"
        report.cases.append(Case.of("slowest input", workers, [slowest.slowest_s * 1000], note, "ms of CPU"))
        report.targets.append(Target.at_most("inputs that broke a promise", 0, len(self.failures)))
        report.targets.append(
            Target.at_most("RSS growth, all workers, MiB", RSS_GROWTH_MIB_MAX, self.rss_growth_mib)
        )
        return report


def replay(seed: int, number: int) -> None:
    """One input, and whatever is raised."""
    tried = decoders()
    name, payload = payload_of(tried, seed, number, Random())
    shown = payload.hex() if len(payload) <= ERROR_CHARACTERS_MAX else f"{payload[:64].hex()}..."
    click.echo(f"input {number} of seed {seed}, for {name}, {len(payload)} bytes: {shown}")
    click.echo("taken" if tried[name].judge(payload) else "refused")


@click.command()
@click.option("--inputs", default=10_000_000, show_default=True, help="How many inputs.")
@click.option("--seed", default=1, show_default=True, help="Of the inputs.")
@click.option("--first", default=0, show_default=True, help="Number of the first one.")
@click.option("--only", type=int, help="Replay one input.")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True, help="Processes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def main(*, inputs: int, seed: int, first: int, only: int | None, workers: int, as_json: bool) -> None:
    """Try the decoders on hostile input; exit code 1 if a promise is broken."""
    if only is not None:
        replay(seed, only)
        return
    started = time.monotonic()
    total = Total()
    for chunk in try_all(seed, first, inputs, workers):
        total.add(chunk)
        if len(total.failures) >= FAILURES_SHOWN_MAX:
            break
    total.report(time.monotonic() - started).show(as_json)
    for failure in total.failures[:FAILURES_SHOWN_MAX]:
        click.echo(f"{failure.decoder}: {failure.text}", err=True)
        click.echo(f"  python -m fuzz.codec --seed {seed} --only {failure.number}", err=True)
    raise SystemExit(bool(total.failures))


if __name__ == "__main__":
    main()
