"""Healing under fire: replicas with real transports and a real ring, and lines between them that break.

One process and no lighthouse: ``Table`` gives those who sit at it one quorum a step. What a healing replica
fetches passes through a ``Line`` of its source, which does what networks do: it is cut, falls silent, or
changes a byte. Whatever happens, the others' step goes on, nobody loads what is not right, and the newcomer
heals in the step after.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import pytest

from procguard.adapters.collective import RingProcessGroup
from procguard.client.checkpoint import HTTPTransport
from procguard.client.replica import Replica, Rules, WorldSizeMode
from procguard.client.state_stream import SENT_BYTES
from procguard.errors import UnsupportedState
from procguard.messages import Participant, Quorum
from tests.client.fakes import DEADLINE_S, FakeMembership, quorum

LONG = timedelta(seconds=60)  # is never waited for, unless something is broken
ENDLESS = timedelta(hours=1)  # nor is this: a test that does ends by its deadline
SHORT = timedelta(seconds=6)  # half of it is waited for, where silence is what is tested
STATE_BYTES = 3 * SENT_BYTES
BLOW_BYTES = SENT_BYTES + (SENT_BYTES >> 1)
"""The line is struck when so much has passed."""
PIECE_BYTES = 1 << 16
HANG_UP = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a reset."""

RULES = Rules(
    min_replica_size=1,
    use_async_quorum=True,
    world_size_mode=WorldSizeMode.DYNAMIC,
    init_sync=True,
    timeout=LONG,
    quorum_timeout=LONG,
    quorum_retries=0,
    max_retries=None,
)

Blow = Callable[["Line", bytes], bytes | None]


class Line:
    """A line to a source. ``blow`` strikes it once; it returns what passes on, or None when nothing does."""

    def __init__(self) -> None:
        self.blow: Blow | None = None
        self.passed_bytes = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def lead_to(self, url: str) -> str:
        """The URL by which this one is reached over the line."""
        parts = urllib.parse.urlsplit(url)
        if not self._threads:
            self._begin(self._accept, ("127.0.0.1", parts.port))
        port = self._listening.getsockname()[1]
        return parts._replace(netloc=f"127.0.0.1:{port}").geturl()

    def _begin(self, work: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments))
        self._threads[-1].start()

    def _accept(self, source: tuple[str, int]) -> None:
        with suppress(OSError):  # closed
            while True:
                here, _ = self._listening.accept()
                there = socket.create_connection(source)
                self._open += [here, there]
                self._begin(self._carry, here, there, False)
                self._begin(self._carry, there, here, True)

    def _carry(self, origin: socket.socket, target: socket.socket, is_state: bool) -> None:
        with suppress(OSError):  # either end has gone, or the line is closed
            while piece := origin.recv(PIECE_BYTES):
                if is_state:
                    self.passed_bytes += len(piece)
                    changed = self._struck(piece)
                    if changed is None:
                        return
                    piece = changed
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)

    def _struck(self, piece: bytes) -> bytes | None:
        if self.blow is None or self.passed_bytes < BLOW_BYTES:
            return piece
        blow, self.blow = self.blow, None
        return blow(self, piece)

    def cut(self, piece: bytes) -> None:
        for end in self._open:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HANG_UP)
            end.shutdown(socket.SHUT_RD)  # wakes who reads there
            end.close()

    def fall_silent(self, piece: bytes) -> None:
        """Carry nothing more, and hang up on nobody."""

    def change_a_byte(self, piece: bytes) -> bytes:
        return bytes([piece[0] ^ 1]) + piece[1:]

    def close(self) -> None:
        for end in (self._listening, *self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(DEADLINE_S)


class LinedTransport(HTTPTransport):
    """Is reached over a line."""

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(timeout)
        self.line = Line()

    def metadata(self) -> str:
        return self.line.lead_to(super().metadata())

    def shutdown(self, wait: bool = True) -> None:
        self.line.close()
        super().shutdown(wait)


class Table:
    """Gives those who sit at it one quorum as soon as all of them have asked."""

    def __init__(self) -> None:
        self.seated: tuple[str, ...] = ()
        self._asked: dict[str, Participant] = {}
        self._formed: list[Quorum] = []
        self._changed = threading.Condition()

    def quorum(self, asks: Participant) -> Quorum:
        with self._changed:
            self._asked[asks.replica_id] = asks
            mine = len(self._formed)
            if self._asked.keys() >= set(self.seated):
                self._formed.append(quorum(mine + 1, *self._asked.values()))
                self._asked.clear()
                self._changed.notify_all()
            assert self._changed.wait_for(lambda: len(self._formed) > mine, DEADLINE_S)
            return self._formed[mine]


class Seat(FakeMembership):
    def __init__(self, name: str, table: Table) -> None:
        super().__init__(name)
        self._table = table

    def quorum(self, asks: Participant, timeout_s: float) -> Quorum:
        return self._table.quorum(asks)


class Outcome(NamedTuple):
    committed: bool
    gradient: float
    """Each contributes a one."""
    source: int | None


class Healing:
    """Replicas by name, in training at the step that each is given."""

    def __init__(self, **rules: Any) -> None:
        self._rules = RULES._replace(**rules)
        self._stack = ExitStack()
        self._pool = self._stack.enter_context(ThreadPoolExecutor(8))
        self.table = Table()
        self.replicas: dict[str, Replica] = {}
        self.weights: dict[str, Any] = {}
        self.lines: dict[str, Line] = {}
        self.loads = 0

    def add(self, name: str, step: int) -> None:
        """Its weights tell its step, in each number."""
        timeout = self._rules.timeout
        transport = LinedTransport(timeout)
        self.weights[name] = np.full(STATE_BYTES // 8, step, np.int64)

        def load(weights: Any) -> None:
            self.loads += 1
            self.weights[name] = weights

        replica = Replica(
            self._rules,
            name,
            "127.0.0.1",
            RingProcessGroup(timeout),
            transport,
            load,
            lambda: self.weights[name],
            lambda hears: Seat(name, self.table),  # type: ignore[arg-type, return-value]  # as much as a Replica asks of it
        )
        if step:
            replica.load_state_dict({"step": step, "batches_committed": step, "committed_in": 1})
        self.replicas[name], self.lines[name] = replica, transport.line
        self._stack.callback(replica.shutdown, wait=False)

    def step(self, *names: str) -> dict[str, Any]:
        """One step of these; what came of it for each, or what it raised."""
        self.table.seated = names
        running = {name: self._pool.submit(self._step, self.replicas[name]) for name in names}
        outcomes = {name: future.exception(DEADLINE_S) or future.result() for name, future in running.items()}
        for name, outcome in outcomes.items():
            if isinstance(outcome, Outcome) and outcome.committed:
                self.weights[name] += 1
        return outcomes

    @staticmethod
    def _step(replica: Replica) -> Outcome:
        replica.start_quorum()
        gradient = np.ones(4)
        replica.allreduce(gradient).wait()
        committed = replica.should_commit()
        return Outcome(committed, float(gradient[0]), replica._plan().source)

    def all_hold(self, step: int, *names: str) -> bool:
        return all(
            self.replicas[name].current_step() == step and (self.weights[name] == step).all()
            for name in names
        )

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def stages() -> Iterator[Callable[..., Healing]]:
    with ExitStack() as stack:

        def make(rules: dict[str, Any] | None = None, **steps: int) -> Healing:
            stage = Healing(**(rules or {}))
            stack.callback(stage.close)
            for name, step in steps.items():
                stage.add(name, step)
            return stage

        yield make


@pytest.mark.parametrize(
    ("blow", "timeout", "said"),
    [
        (Line.cut, LONG, r"reset|ended in the middle"),
        (Line.change_a_byte, LONG, r"checksum of buffer 0 does not match"),
        (Line.fall_silent, SHORT, r"no progress for 3 s"),
    ],
    ids=["cut off", "corrupted", "black hole"],
)
def test_a_line_struck_in_mid_transfer(
    stages: Callable[..., Healing],
    caplog: pytest.LogCaptureFixture,
    blow: Blow,
    timeout: timedelta,
    said: str,
) -> None:
    stage = stages({"timeout": timeout}, a=5, b=5, c=0)
    stage.lines["a"].blow = blow
    outcomes = stage.step("a", "b", "c")
    assert outcomes == {
        "a": Outcome(True, 1.0, None),
        "b": Outcome(True, 1.0, None),
        "c": Outcome(False, 1.0, 0),
    }, "the step goes on without the newcomer"
    (line,) = [record.getMessage() for record in caplog.records if "Healing from a failed" in record.message]
    assert re.search(said, line), line
    assert stage.loads == 0
    assert stage.all_hold(6, "a", "b")
    assert stage.all_hold(0, "c")
    outcomes = stage.step("a", "b", "c")
    assert outcomes["c"] == Outcome(True, 1.0, 1), "from another source"
    assert stage.all_hold(7, "a", "b", "c")


@pytest.mark.parametrize(
    ("sources", "healed_from"),
    [(("a",), [0, 0]), (("a", "b"), [0, 1])],
    ids=["of one source", "of two sources"],
)
def test_two_heal_at_once(
    stages: Callable[..., Healing], sources: tuple[str, ...], healed_from: list[int]
) -> None:
    stage = stages(**dict.fromkeys(sources, 5), y=0, z=2)
    outcomes = stage.step(*sources, "y", "z")
    assert [outcome.committed for outcome in outcomes.values()] == [True] * len(outcomes)
    assert [outcome.gradient for outcome in outcomes.values()] == [1.0] * len(outcomes)
    assert [outcomes[name].source for name in ("y", "z")] == healed_from
    assert stage.all_hold(6, *outcomes)
    assert stage.step(*outcomes) == dict.fromkeys(outcomes, Outcome(True, 1.0, None))


SPARES = {"world_size_mode": WorldSizeMode.FIXED_WITH_SPARES}


@pytest.mark.parametrize(
    ("rules", "ranks"),
    [
        pytest.param({}, [0, 1, None], id="async"),
        pytest.param({"use_async_quorum": False}, [0, 1, 2], id="sync"),
        pytest.param({"min_replica_size": 1, **SPARES}, [0, None, None], id="async, spares"),
        pytest.param(
            {"min_replica_size": 2, "use_async_quorum": False, **SPARES}, [0, 1, None], id="sync, spares"
        ),
    ],
)
def test_in_each_mode_all_agree_on_who_contributes(
    stages: Callable[..., Healing], rules: dict[str, Any], ranks: list[int | None]
) -> None:
    """The average over those who contribute, each a one, is one; and everybody has taken the step."""
    stage = stages(rules, a=5, b=5, c=0)
    outcomes = stage.step("a", "b", "c")
    assert [replica.participating_rank() for replica in stage.replicas.values()] == ranks
    contributing = [rank for rank in ranks if rank is not None]
    assert {replica.num_participants() for replica in stage.replicas.values()} == {len(contributing)}
    assert {(outcome.committed, outcome.gradient) for outcome in outcomes.values()} == {(True, 1.0)}
    assert stage.all_hold(6, "a", "b", "c")
    assert len({replica.batches_committed() for replica in stage.replicas.values()}) == 1


@pytest.mark.parametrize("init_sync", [True, False])
def test_the_first_step_of_all(stages: Callable[..., Healing], init_sync: bool) -> None:
    stage = stages({"init_sync": init_sync, "min_replica_size": 3}, a=0, b=0, c=0)
    for number, name in enumerate("abc"):
        stage.weights[name] += 100 * number
    outcomes = stage.step("a", "b", "c")
    assert {(outcome.committed, outcome.gradient) for outcome in outcomes.values()} == {(True, 1.0)}
    firsts = [int(stage.weights[name][0]) for name in "abc"]
    assert firsts == ([1, 1, 1] if init_sync else [1, 101, 201])


def test_an_object_that_cannot_be_sent_is_its_owners_error_and_keeps_nobody_waiting(
    stages: Callable[..., Healing],
) -> None:
    stage = stages({"timeout": ENDLESS}, a=5, b=5, c=0)
    stage.weights["a"] = {"layers": [{"hook": object()}]}
    outcomes = stage.step("a", "b", "c")
    assert isinstance(outcomes["a"], UnsupportedState)
    path = "state['user']['default']['layers'][0]['hook']: object of type builtins.object"
    assert str(outcomes["a"]).startswith(path)
    assert [outcomes[name].committed for name in "bc"] == [False, False]
    assert stage.step("b", "c") == {"b": Outcome(True, 1.0, None), "c": Outcome(True, 1.0, 0)}
    assert stage.all_hold(6, "b", "c")
