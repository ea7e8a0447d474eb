"""The loop: what it concludes from time, in which order it acts, and what a peer cannot do to it.

Virtual time: the wire's ``wait`` moves the clock, and nothing here sleeps.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import pytest

from procguard.adapters.base import (
    Aside,
    Frame,
    HandshakeFailed,
    Inbound,
    KeyRefused,
    KeysRead,
    OperatorFrame,
    Subscribed,
    Unsubscribed,
)
from procguard.adapters.memory import MemoryNetwork
from procguard.codec import decode, encode
from procguard.errors import StateError
from procguard.lighthouse.core import Core
from procguard.lighthouse.events import Effect, Event, Received
from procguard.lighthouse.roster import Options
from procguard.lighthouse.service import BATCH_COUNT_MAX, REFUSALS_KEPT_MAX, Service
from procguard.messages import (
    Beacon,
    CauseKind,
    Heartbeat,
    Hello,
    Incarnation,
    Kill,
    Killed,
    KillResult,
    Leave,
    MemberState,
    Message,
    NoticeBatch,
    Phase,
    Process,
    Settings,
    SnapshotRequest,
    Welcome,
    listener_topic,
    notice_topic,
)

EPOCH = 1_000
INTERVAL_S, TIMEOUT_S = 0.1, 1.0
SETTINGS = Settings(INTERVAL_S, TIMEOUT_S, 5.0, 0.3, 60.0)
OPTIONS = Options(SETTINGS, min_replicas=1, notice_port=29511, restarted=False)
DRAIN_COST_S = 0.02


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Wire:
    """A transport whose inbox the test fills; waiting on an empty inbox is how time goes by."""

    port, notice_port = 29510, 29511

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.inbox: deque[Inbound] = deque()
        self.sent: list[tuple[bytes, Message]] = []
        self.published: list[bytes] = []
        self.waits: list[float] = []
        self.gone: set[bytes] = set()
        self.flood: Frame | None = None

    def wait(self, timeout_s: float) -> None:
        self.waits.append(timeout_s)
        if not self.inbox and not self.flood:
            self.clock.sleep(timeout_s)

    def drain(self, count_max: int) -> list[Inbound]:
        batch = [self.inbox.popleft() for _ in range(min(count_max, len(self.inbox)))]
        if self.flood:
            self.clock.sleep(DRAIN_COST_S)
            batch += [self.flood] * (count_max - len(batch))
        return batch

    def send(self, peer: bytes, frame: bytes) -> bool:
        if peer in self.gone:
            return False
        self.sent.append((peer, decode(frame)))
        return True

    def publish(self, frame: bytes) -> None:
        self.published.append(frame)

    def wake(self) -> None:
        raise AssertionError("only signals wake")

    def close(self) -> None:
        raise AssertionError("the wire is its owner's to close")


class Lighthouse:
    """A service with everything around it that a story needs."""

    def __init__(self, core: Core | None = None) -> None:
        self.clock = Clock()
        self.wire = Wire(self.clock)
        self.core = core or Core(OPTIONS, EPOCH, self.clock())
        self.persisted: list[int] = []
        self.pauses: list[float] = []
        self.service = Service(self.core, self.wire, self.persist, self.clock, self.pause)

    def persist(self, epoch: int) -> None:
        self.persisted.append(epoch)

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock.sleep(seconds)

    def hears(self, *messages: Message) -> None:
        """Each from the connection of its own name, in one batch."""
        self.wire.inbox.extend(Frame(b"peer", encode(message)) for message in messages)

    def hears_aside(self, *messages: Message) -> None:
        """On the connection of notices."""
        self.wire.inbox.extend(Aside(encode(message)) for message in messages)

    def turn(self) -> None:
        self.service.run_once()

    def until(self, condition: Callable[[], bool], within_s: float) -> None:
        deadline = self.clock() + within_s
        while not condition():
            assert self.clock() < deadline, f"not within {within_s} s"
            self.turn()

    def join(self, name: str) -> Incarnation:
        self.hears(hello(name))
        self.turn()
        _, welcome = self.wire.sent.pop()
        assert isinstance(welcome, Welcome)
        return welcome.incarnation

    def beats(self, name: str, incarnation: Incarnation) -> None:
        self.hears(beat(name, incarnation))

    def state(self, name: str) -> MemberState:
        (job,) = self.core.snapshot("", self.clock()).jobs
        return next(member.state for member in job.members if member.replica_id == name)

    def counter(self, name: str) -> int:
        counters = self.core.snapshot("", self.clock()).counters
        return next((counter.value for counter in counters if counter.name == name), 0)

    def notices(self) -> list[NoticeBatch]:
        topic = notice_topic("train")
        assert all(frame.startswith(topic) for frame in self.wire.published)
        messages = [decode(frame.removeprefix(topic)) for frame in self.wire.published]
        assert all(isinstance(message, (NoticeBatch, Beacon)) for message in messages)
        return [message for message in messages if isinstance(message, NoticeBatch)]


def token(name: str) -> bytes:
    return name.encode().ljust(16, b".")


def hello(name: str, topic: bytes = b"", epoch: int = 0) -> Hello:
    process = Process("host", "boot", 7, 8)
    return Hello("train", name, token(name), process, 0, 1, "run", None, topic, "", epoch, 1, 0.0)


def beat(name: str, incarnation: Incarnation) -> Heartbeat:
    return Heartbeat(token(name), incarnation, False, False, Phase.COMPUTE, 1, 1)


@pytest.fixture
def lighthouse() -> Lighthouse:
    return Lighthouse()


# --- time


def test_silence_is_told_after_the_timeout(lighthouse: Lighthouse) -> None:
    a = lighthouse.join("a")
    lighthouse.beats("a", a)
    lighthouse.until(lambda: bool(lighthouse.notices()), within_s=TIMEOUT_S + INTERVAL_S)
    ((notice,),) = [batch.notices for batch in lighthouse.notices()]
    assert (notice.replica_id, notice.incarnation) == ("a", a)
    assert notice.cause.kind is CauseKind.HEARTBEAT_TIMEOUT


def test_a_beat_in_the_inbox_goes_before_the_clock(lighthouse: Lighthouse) -> None:
    a = lighthouse.join("a")
    lighthouse.beats("a", a)
    lighthouse.turn()
    over = lighthouse.clock() + TIMEOUT_S
    lighthouse.until(lambda: lighthouse.clock() > over - INTERVAL_S * 0.8, within_s=TIMEOUT_S)
    lighthouse.clock.sleep(INTERVAL_S * 0.9)
    assert lighthouse.clock() > over
    lighthouse.beats("a", a)
    lighthouse.turn()
    assert lighthouse.counter("stalls of the lighthouse's own loop") == 0
    assert lighthouse.state("a") is MemberState.ALIVE


def test_a_wait_ends_at_the_next_deadline_and_within_half_an_interval(lighthouse: Lighthouse) -> None:
    lighthouse.until(lambda: lighthouse.clock() > 53.0, within_s=4.0)
    assert max(lighthouse.wire.waits) == INTERVAL_S / 2
    assert min(lighthouse.wire.waits) >= 0.0
    assert lighthouse.core.next_deadline() - lighthouse.clock() <= 0.5  # the beacon's, kept up with


def test_our_own_sleep_is_nobodys_silence(lighthouse: Lighthouse, caplog: pytest.LogCaptureFixture) -> None:
    a = lighthouse.join("a")
    lighthouse.beats("a", a)
    lighthouse.turn()
    lighthouse.clock.sleep(30.0)
    lighthouse.turn()
    assert lighthouse.state("a") is MemberState.ALIVE
    assert lighthouse.counter("stalls of the lighthouse's own loop") == 1
    assert "The lighthouse itself was held up for" in caplog.text
    woke = lighthouse.clock()
    lighthouse.until(lambda: bool(lighthouse.notices()), within_s=TIMEOUT_S + INTERVAL_S)
    assert lighthouse.clock() >= woke + TIMEOUT_S


def test_a_gap_of_an_interval_is_no_stall(lighthouse: Lighthouse) -> None:
    for _ in range(20):
        lighthouse.clock.sleep(INTERVAL_S * 0.9)
        lighthouse.turn()
    assert lighthouse.counter("stalls of the lighthouse's own loop") == 0


def test_a_flood_stops_neither_time_nor_anybodys_heart(lighthouse: Lighthouse) -> None:
    alive, dead = lighthouse.join("alive"), lighthouse.join("dead")
    lighthouse.hears(beat("alive", alive), beat("dead", dead))
    lighthouse.turn()
    lighthouse.wire.flood = Frame(b"flooder", encode(beat("nobody", Incarnation(1, 1))))

    def told() -> bool:
        lighthouse.beats("alive", alive)
        return bool(lighthouse.notices())

    lighthouse.until(told, within_s=TIMEOUT_S + 2 * INTERVAL_S)
    ((notice,),) = [batch.notices for batch in lighthouse.notices()]
    assert notice.replica_id == "dead"
    assert lighthouse.state("alive") is MemberState.ALIVE
    assert lighthouse.counter("stalls of the lighthouse's own loop") == 0


def test_in_a_flood_an_end_is_told_after_the_batch_that_it_came_in(
    lighthouse: Lighthouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = lighthouse.join("a")
    told_at: list[float] = []
    monkeypatch.setattr(lighthouse.wire, "publish", lambda frame: told_at.append(lighthouse.clock()))
    lighthouse.wire.flood = Frame(b"flooder", encode(beat("nobody", Incarnation(1, 1))))
    lighthouse.hears(Leave(token("a"), a, 5))
    started_at = lighthouse.clock()
    lighthouse.turn()
    assert told_at[0] == started_at + DRAIN_COST_S
    assert lighthouse.clock() > started_at + DRAIN_COST_S, "and the flood went on"


def test_a_full_inbox_is_taken_in_to_its_end_before_time_passes(lighthouse: Lighthouse) -> None:
    a = lighthouse.join("a")
    junk = [beat("nobody", Incarnation(1, 1))] * (3 * BATCH_COUNT_MAX)
    lighthouse.hears(*junk, Leave(token("a"), a, 5))
    lighthouse.turn()
    assert not lighthouse.wire.inbox
    assert [notice.step for batch in lighthouse.notices() for notice in batch.notices] == [5]


def test_frames_gather_only_when_they_come_fast(lighthouse: Lighthouse) -> None:
    def run(beats_a_turn: int) -> int:
        lighthouse.pauses.clear()
        for _ in range(400):
            lighthouse.clock.sleep(0.001)
            lighthouse.hears(*[beat("nobody", Incarnation(1, 1))] * beats_a_turn)
            lighthouse.turn()
        return len(lighthouse.pauses)

    assert run(1) == 0  # 1,000 a second
    assert run(5) > 200
    assert max(lighthouse.pauses) == 0.001
    run(1)  # it takes a window to notice
    assert run(1) == 0


# --- what arrives


def test_a_beat_that_comes_aside_renews_the_lease_and_is_not_answered(lighthouse: Lighthouse) -> None:
    life = lighthouse.join("a")
    for _ in range(40):
        lighthouse.hears_aside(beat("a", life))
        lighthouse.turn()
        lighthouse.turn()  # with nothing in the inbox: half an interval goes by
    assert lighthouse.state("a") is MemberState.ALIVE
    answers = len(lighthouse.wire.sent)
    lighthouse.hears_aside(beat("a", life._replace(number=life.number + 7)), hello("b"))
    lighthouse.turn()
    assert len(lighthouse.wire.sent) == answers, "neither a wrong beat nor anything else is taken"


def test_a_listener_is_welcomed_when_its_subscription_stands(lighthouse: Lighthouse) -> None:
    topic = listener_topic(b"x" * 8)
    lighthouse.hears(hello("a", topic))
    lighthouse.turn()
    assert lighthouse.wire.sent == []
    lighthouse.wire.inbox.append(Subscribed(topic))
    lighthouse.turn()
    assert [type(message) for _, message in lighthouse.wire.sent] == [Welcome]
    lighthouse.wire.inbox.append(Unsubscribed(topic))
    lighthouse.turn()
    assert lighthouse.state("a") is MemberState.SUSPECT


GARBAGE = [
    b"",
    b"\xc1",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x00" * (1 << 20),
    encode(hello("a"))[:-1],
    b"\x92\x02\x01",
]


def test_garbage_is_dropped_counted_and_told_once_a_second(
    lighthouse: Lighthouse, caplog: pytest.LogCaptureFixture
) -> None:
    lighthouse.wire.inbox.extend(Frame(b"stranger", payload) for payload in GARBAGE)
    a = lighthouse.join("a")
    assert lighthouse.counter("invalid frames") == len(GARBAGE)
    assert caplog.text.count("Dropped a frame that is no message") == 1
    for _ in range(50):
        lighthouse.hears(beat("a", a))
        lighthouse.wire.inbox.append(Frame(b"stranger", b"\xc1"))
        lighthouse.clock.sleep(0.045)
        lighthouse.turn()
    assert caplog.text.count("Dropped a frame that is no message") == 3
    assert "(and 22 more like it before)" in caplog.text
    assert lighthouse.state("a") is MemberState.ALIVE


def test_a_stranger_on_the_port_is_told_once_a_second(
    lighthouse: Lighthouse, caplog: pytest.LogCaptureFixture
) -> None:
    lighthouse.wire.inbox.extend([HandshakeFailed("an HTTP client, it seems")] * 50)
    lighthouse.turn()
    assert caplog.text.count("an HTTP client, it seems") == 1
    assert lighthouse.counter("failed handshakes") == 50


def test_a_wrong_key_is_told_once_and_each_time_counted(
    lighthouse: Lighthouse, caplog: pytest.LogCaptureFixture
) -> None:
    refused = KeyRefused("refused keys", "key 0123 was turned away")
    for _ in range(3):
        lighthouse.wire.inbox.extend([refused] * 50)
        lighthouse.turn()
        lighthouse.clock.sleep(10.0)
    assert caplog.text.count("Refused: key 0123 was turned away") == 1
    assert lighthouse.counter("refused keys") == 150


def test_many_wrong_keys_are_told_once_a_second_and_forgotten(
    lighthouse: Lighthouse, caplog: pytest.LogCaptureFixture
) -> None:
    count = 3 * REFUSALS_KEPT_MAX
    lighthouse.wire.inbox.extend([KeyRefused("refused keys", f"key {n}") for n in range(count)])
    lighthouse.turn()
    assert caplog.text.count("Refused: key") == 1
    assert len(lighthouse.service._refused) == REFUSALS_KEPT_MAX
    assert lighthouse.counter("refused keys") == count


def test_a_list_read_again_is_told_and_so_is_a_key_refused_since(
    lighthouse: Lighthouse, caplog: pytest.LogCaptureFixture
) -> None:
    refused = KeyRefused("refused keys", "key 0123")
    for inbound in (refused, KeysRead("The allow-list was read again: 1 added (c), 4 keys"), refused):
        lighthouse.wire.inbox.append(inbound)
        lighthouse.turn()
        lighthouse.clock.sleep(10.0)
    assert caplog.text.count("The allow-list was read again: 1 added (c)") == 1
    assert caplog.text.count("Refused: key 0123") == 2


def test_the_core_learns_which_operator_speaks(lighthouse: Lighthouse) -> None:
    incarnation = lighthouse.join("a")
    kill = encode(Kill("train", "a", incarnation))
    lighthouse.wire.inbox.extend([Frame(b"peer", kill), OperatorFrame(b"op", kill, "ann")])
    lighthouse.turn()
    answers = {peer: answer.result for peer, answer in lighthouse.wire.sent if isinstance(answer, Killed)}
    assert answers == {b"peer": KillResult.NOT_ALLOWED, b"op": KillResult.DONE}
    assert lighthouse.state("a") is MemberState.FAILED


def test_an_answer_that_cannot_be_delivered_is_counted(lighthouse: Lighthouse) -> None:
    lighthouse.wire.gone.add(b"peer")
    lighthouse.hears(hello("a"))
    lighthouse.turn()
    assert lighthouse.counter("answers dropped (peer gone, or not reading)") == 1
    assert lighthouse.state("a") is MemberState.ALIVE


# --- what it does


def test_an_epoch_is_on_disk_before_anybody_hears_of_it() -> None:
    lighthouse = Lighthouse()
    heard: list[list[Message]] = []
    lighthouse.service = Service(
        lighthouse.core,
        lighthouse.wire,
        lambda epoch: heard.append([message for _, message in lighthouse.wire.sent]),
        lighthouse.clock,
    )
    lighthouse.hears(hello("a", epoch=EPOCH + 5))
    lighthouse.turn()
    assert heard == [[]]
    ((_, welcome),) = lighthouse.wire.sent
    assert isinstance(welcome, Welcome)
    assert welcome.epoch == lighthouse.core.epoch > EPOCH + 5


def test_a_full_disk_does_not_stop_training(caplog: pytest.LogCaptureFixture) -> None:
    class FullDisk(Lighthouse):
        def persist(self, epoch: int) -> None:
            raise StateError("/state: no space left")

    lighthouse = FullDisk()
    lighthouse.hears(hello("a", epoch=EPOCH + 5))
    lighthouse.turn()
    assert [type(message) for _, message in lighthouse.wire.sent] == [Welcome]
    assert f"Epoch {EPOCH + 6} is not on disk: /state: no space left" in caplog.text


def test_what_the_core_says_is_logged_with_its_names(
    lighthouse: Lighthouse, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    lighthouse.join("a")
    (record,) = [record for record in caplog.records if "joined" in record.getMessage()]
    assert record.levelno == logging.INFO
    assert record.fields == {"job_id": "train", "replica_id": "a"}


def test_a_bug_of_ours_costs_one_event_and_is_told_in_full(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Core):
        def step(self, event: Event, now: float) -> tuple[Effect, ...]:
            if isinstance(event, Received) and isinstance(event.message, SnapshotRequest):
                raise AssertionError("no way from HERE on THERE")
            return super().step(event, now)

    lighthouse = Lighthouse(Faulty(OPTIONS, EPOCH, 50.0))
    lighthouse.hears(SnapshotRequest(""), SnapshotRequest(""))
    lighthouse.join("a")
    assert lighthouse.state("a") is MemberState.ALIVE
    assert lighthouse.counter("errors of the lighthouse itself") == 2
    (record,) = [record for record in caplog.records if "bug in ProcGuard" in record.getMessage()]
    assert record.levelno == logging.ERROR
    assert "no way from HERE on THERE" in caplog.text
    assert "Traceback" in caplog.text


def test_it_runs_until_it_is_told_to_stop(lighthouse: Lighthouse) -> None:
    lighthouse.service.run(stop=lambda: len(lighthouse.wire.waits) == 3)
    assert len(lighthouse.wire.waits) == 3


def test_members_hear_through_a_network_what_became_of_each_other() -> None:
    lighthouse, network = Lighthouse(), MemoryNetwork()
    lighthouse.service = Service(
        lighthouse.core, network.lighthouse(), lighthouse.persist, lighthouse.clock, lighthouse.pause
    )
    members = {name: network.member() for name in "ab"}
    beats: dict[str, bytes] = {}
    for name, member in members.items():
        topic = listener_topic(name.encode() * 8)
        member.listen(29511, [notice_topic("train"), topic])
        member.send(encode(hello(name, topic)))
        lighthouse.turn()
        (welcome,) = map(decode, member.receive(10))
        assert isinstance(welcome, Welcome)
        beats[name] = encode(beat(name, welcome.incarnation))
    network.cut(members["a"])
    for _ in range(10):
        members["b"].send(beats["b"])
        lighthouse.turn()
        lighthouse.clock.sleep(INTERVAL_S / 2)
    heard = [decode(frame.partition(b"\0")[2]) for frame in members["b"].notices(100)]
    (notice,) = [notice for batch in heard if isinstance(batch, NoticeBatch) for notice in batch.notices]
    assert (notice.replica_id, notice.cause.kind) == ("a", CauseKind.CONNECTION_LOST)
