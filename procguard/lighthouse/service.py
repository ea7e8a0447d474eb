"""The lighthouse's loop: wait, take in what arrived, let time pass; perform what the core decides.

It has no opinion on members, leases or quorums. Its own subject is time, and what may be concluded from it:

- *The inbox goes before the clock.* Deadlines are judged as of the moment at which the inbox was last looked
  at, after all of it was taken in, so that no member whose heartbeat lies in it is called dead.
- *A flood does not stop time.* An inbox without end is taken in for half a heartbeat interval, and then time
  passes all the same; and what has no deadline, a death above all, is told after each batch of it. Nobody is
  blamed for that, because transports take turns between connections: a beat waits behind the connections,
  not behind the flood, and a lease lasts at least three intervals.
- *Our own sleep is nobody's silence.* A turn that comes more than a heartbeat interval later than asked for
  means that this process was held up (stopped, suspended, starved of CPU), and the core is told. A wait is
  never longer than half an interval, so every such gap is noticed before a lease could pass in it.
- *Many beats, few turns.* When frames come so fast that each would wake the loop, they are let gather for a
  millisecond: half the CPU, for a delay that nobody notices. With few members there is no such pause.

Nothing a peer does ends the loop. A frame that is no message is dropped and counted. Should a step fail on
its way (an ``assert`` of the core: a bug of ours), the event that showed it is lost; it is logged with its
traceback, counted and shown in every ``Snapshot``, and the loop goes on. Stopping would be tidier, but would
take all jobs down for what is at worst a wrong record of one member, which that member's next Hello puts
right. What has nothing to do with peers, such as a broken transport, is raised.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from math import inf
from typing import Any

from procguard.adapters.base import (
    Aside,
    Frame,
    HandshakeFailed,
    Inbound,
    KeyRefused,
    KeysRead,
    LighthouseTransport,
    OperatorFrame,
    Subscribed,
    Unsubscribed,
)
from procguard.codec import decode, encode
from procguard.errors import ProtocolError, StateError
from procguard.lighthouse.core import Core
from procguard.lighthouse.events import (
    Event,
    Log,
    LoopStalled,
    MoreToCome,
    PersistEpoch,
    Publish,
    Received,
    Send,
    TimePassed,
    TopicHeld,
    TopicLost,
)
from procguard.messages import Heartbeat, Message, notice_topic

BATCH_COUNT_MAX = 250
"""Taken from the inbox with one reading of the clock: a millisecond's work, for which a death may wait."""
INTERVALS_PER_WAIT_MAX = 0.5
INTERVALS_PER_INTAKE_MAX = 0.5
FAST_RATE_PER_S = 2_000
RATE_WINDOW_S = 0.1
GATHERING_S = 0.001
COMPLAINT_INTERVAL_S = 1.0
REFUSALS_KEPT_MAX = 100
NOBODY = b""
"""The peer of what came by a way on which nothing can be answered."""

logger = logging.getLogger(__name__)


class Service:
    """Drives one core over one transport.

    Args:
        core: made by the caller, with a ``now`` of the same ``clock``.
        transport: bound; closed by the caller.
        persist_epoch: makes an epoch durable; its ``StateError`` is logged, and the lighthouse goes on.
        clock: monotonic seconds.
        pause: sleeps for so many seconds.
    """

    def __init__(
        self,
        core: Core,
        transport: LighthouseTransport,
        persist_epoch: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._core = core
        self._transport = transport
        self._persist_epoch = persist_epoch
        self._clock = clock
        self._pause = pause
        self._interval_s = core.roster.options.settings.heartbeat_interval_s
        self._counters = core.roster.counters
        self._turned_at = clock()
        self._rate = _Rate(self._turned_at)
        self._bad_frame, self._stranger, self._own_error = _Complaint(), _Complaint(), _Complaint()
        self._wrong_key = _Complaint()
        self._refused: dict[str, None] = {}
        """What was said of refused keys, oldest first."""
        self._lines: list[Log] = []
        self._perform: dict[type, Callable[[Any], None]] = {
            Send: self._send,
            Publish: self._publish,
            PersistEpoch: self._persist,
            Log: self._lines.append,
        }

    def run(self, stop: Callable[[], bool]) -> None:
        """Turn after turn until ``stop`` says True; the transport's ``wake`` makes that at once."""
        while not stop():
            self.run_once()

    def run_once(self) -> None:
        """One turn: waits for at most half a heartbeat interval, or as long as the core has nothing due."""
        wait_s = self._core.next_deadline() - self._clock()
        wait_s = min(max(wait_s, 0.0), INTERVALS_PER_WAIT_MAX * self._interval_s)
        if self._rate.fast:
            wait_s = min(wait_s, GATHERING_S)
            self._pause(wait_s)
        else:
            self._transport.wait(wait_s)
        now = self._clock()
        gap_s = now - self._turned_at - wait_s
        self._turned_at = now
        if gap_s > self._interval_s:
            self._step(LoopStalled(gap_s), now)
        now = self._take_in(now)
        self._step(TimePassed(), now)
        self._write_log()

    def _take_in(self, now: float) -> float:
        """Drain the inbox to its end, or for as long as a flood is listened to.

        Returns when the inbox was last looked at: what is known of the others is known as of then.
        """
        enough = now + INTERVALS_PER_INTAKE_MAX * self._interval_s
        while True:
            batch = self._transport.drain(BATCH_COUNT_MAX)
            for inbound in batch:
                self._receive(inbound, now)
            self._rate.count(len(batch), now)
            if len(batch) < BATCH_COUNT_MAX or now >= enough:
                return now
            self._step(MoreToCome(), now)
            now = self._clock()

    def _receive(self, inbound: Inbound, now: float) -> None:
        if type(inbound) is Frame or type(inbound) is OperatorFrame:
            message = self._decoded(inbound.payload, now)
            if message is None:
                return
            operator = inbound.operator if type(inbound) is OperatorFrame else ""
            self._step(Received(inbound.peer, message, operator), now)
        elif type(inbound) is Aside:
            message = self._decoded(inbound.payload, now)
            if type(message) is Heartbeat:  # of all messages the one that is well without an answer
                self._step(Received(NOBODY, message), now)
        elif type(inbound) is Subscribed:
            self._step(TopicHeld(inbound.topic), now)
        elif type(inbound) is Unsubscribed:
            self._step(TopicLost(inbound.topic), now)
        elif type(inbound) is HandshakeFailed:
            self._counters["failed handshakes"] += 1
            self._stranger.say(now, f"Handshake failed: {inbound.text}")
        elif type(inbound) is KeyRefused:
            self._counters[inbound.counter] += 1
            self._refuse(inbound.text, now)
        elif type(inbound) is KeysRead:
            self._refused.clear()
            logger.warning("%s", inbound.text)

    def _decoded(self, frame: bytes, now: float) -> Message | None:
        try:
            return decode(frame)
        except ProtocolError as error:
            self._counters["invalid frames"] += 1
            self._bad_frame.say(now, f"Dropped a frame that is no message: {error}")
            return None

    def _refuse(self, text: str, now: float) -> None:
        """Say it once of each key, as far as that many are remembered: one that is refused tries for ever."""
        if text in self._refused:
            return
        if len(self._refused) >= REFUSALS_KEPT_MAX:
            del self._refused[next(iter(self._refused))]
        self._refused[text] = None
        self._wrong_key.say(now, f"Refused: {text}")

    def _step(self, event: Event, now: float) -> None:
        try:
            for effect in self._core.step(event, now):
                self._perform[type(effect)](effect)
        except Exception as error:  # noqa: BLE001 - a bug of ours, told in full; see the module's docstring
            self._counters["errors of the lighthouse itself"] += 1
            text = f"A bug in ProcGuard: {type(event).__name__} failed and was dropped; please report it"
            self._own_error.say(now, text, logging.ERROR, error)

    def _send(self, effect: Send) -> None:
        frame = encode(effect.message)
        for peer in effect.peers:
            if not self._transport.send(peer, frame):
                self._counters["answers dropped (peer gone, or not reading)"] += 1

    def _publish(self, effect: Publish) -> None:
        self._transport.publish(notice_topic(effect.job_id) + encode(effect.message))

    def _persist(self, effect: PersistEpoch) -> None:
        try:
            self._persist_epoch(effect.epoch)
        except StateError as error:
            # Refusing would let a full disk stop training. The clock, and the members' own memory of the
            # epoch, still keep the next start from using a lower one.
            logger.error("Epoch %d is not on disk: %s", effect.epoch, error)

    def _write_log(self) -> None:
        """At the end of the turn: members hear of a death before people do."""
        for effect in self._lines:
            fields = {"job_id": effect.job_id, "replica_id": effect.replica_id}
            logger.log(effect.level, "%s", effect.text, extra={"fields": fields})
        self._lines.clear()


class _Rate:
    """Whether frames come so fast that each would wake the loop; measured over a short window."""

    def __init__(self, now: float) -> None:
        self.fast = False
        self._count = 0
        self._since = now

    def count(self, frames: int, now: float) -> None:
        self._count += frames
        elapsed_s = now - self._since
        if elapsed_s >= RATE_WINDOW_S:
            self.fast = self._count > FAST_RATE_PER_S * elapsed_s
            self._count = 0
            self._since = now


class _Complaint:
    """A kind of trouble that peers can cause at any rate: logged at most once a second, with the count."""

    def __init__(self) -> None:
        self._silent_until = -inf
        self._unsaid = 0

    def say(
        self, now: float, text: str, level: int = logging.WARNING, error: Exception | None = None
    ) -> None:
        if now < self._silent_until:
            self._unsaid += 1
            return
        before = f" (and {self._unsaid} more like it before)" if self._unsaid else ""
        logger.log(level, "%s%s", text, before, exc_info=error)
        self._silent_until = now + COMPLAINT_INTERVAL_S
        self._unsaid = 0
