"""The listener's conversation in virtual time: beats, gaps in the notices, ends, and a silent lighthouse."""

from __future__ import annotations

import logging
from math import inf
from typing import TypeVar

import pytest

from procguard.client.link_words import (
    Enrol,
    Farewell,
    Heard,
    InQuorum,
    LastWords,
    LeftOut,
    LinkMessage,
    Over,
    Ready,
    Said,
)
from procguard.client.session import (
    BURIAL_S,
    RETRY_FIRST_S,
    SILENCE_FIRST_S,
    SILENCE_LAST_S,
    Died,
    Effect,
    Event,
    Listen,
    Published,
    Received,
    Reconnect,
    Send,
    Session,
    State,
    Tell,
    TimePassed,
    Told,
    Trainer,
)
from procguard.messages import (
    KIND_OF,
    Ack,
    Beacon,
    Cause,
    CauseKind,
    Claim,
    Excluded,
    Heartbeat,
    Hello,
    HelloWanted,
    Incarnation,
    Leave,
    Message,
    Notice,
    NoticeBatch,
    Obituary,
    Phase,
    Process,
    Quorum,
    QuorumClaim,
    QuorumFormed,
    QuorumId,
    Rejected,
    Rejection,
    Rejoin,
    Resync,
    Settings,
    Welcome,
    listener_topic,
    notice_topic,
)

EPOCH = 100
SEQ = 4
INTERVAL_S = 0.1
RETRY_LAST_S = 0.25
TOKEN = b"0123456789abcdef"
TOPIC = listener_topic(b"nonce")
FIRST, SECOND = Incarnation(EPOCH, 1), Incarnation(EPOCH, 2)
SETTINGS = Settings(INTERVAL_S, 4 * RETRY_LAST_S, 5.0, 0.3, 60.0)
PROCESS = Process("host", "boot", 5, 6)
CLAIM = QuorumClaim(QuorumId(EPOCH, 7), (("a", FIRST), ("b", FIRST)))
KILLED = Cause(CauseKind.PROCESS_EXIT, signal=9)
TIMED_OUT = Cause(CauseKind.HEARTBEAT_TIMEOUT)
GONE_WELL = Cause(CauseKind.PROCESS_EXIT, exit_code=0)
M = TypeVar("M")


def hello(incarnation: Incarnation = FIRST, quorum: QuorumClaim | None = None, epoch: int = EPOCH) -> Hello:
    claim = Claim(incarnation, quorum)
    return Hello("train", "a", TOKEN, PROCESS, 0, 1, "", claim, TOPIC, epoch, 2, 0.0)


def enrol(incarnation: Incarnation = FIRST, seq: int = SEQ) -> Enrol:
    return Enrol(hello(incarnation)._replace(topic=b""), 29511, seq, SETTINGS)


def welcome(incarnation: Incarnation = FIRST, seq: int = SEQ, epoch: int = EPOCH) -> Welcome:
    return Welcome(epoch, incarnation, 29511, seq, SETTINGS)


def notice(name: str, incarnation: Incarnation = FIRST, cause: Cause = KILLED) -> Notice:
    return Notice(name, incarnation, cause, 3)


def batch(seq: int, *notices: Notice, epoch: int = EPOCH) -> NoticeBatch:
    return NoticeBatch(epoch, seq, notices)


class Listener:
    """A session, the clock, and what the session wants done: ``effects`` since they were last looked at."""

    def __init__(self, *, threaded: bool = False, hear_notices: bool = True, beating: bool = True) -> None:
        self.now = 50.0
        self.trainer = Trainer()
        self.session = Session(threaded=threaded, topic=TOPIC, hear_notices=hear_notices)
        self.effects: list[Effect] = []
        if beating:
            self.told(enrol())
            self.received(welcome())
            assert self.session.state is State.BEATING
            self.effects.clear()

    def step(self, event: Event) -> None:
        self.effects += self.session.step(event, self.now)

    def told(self, *messages: Enrol | InQuorum | LastWords | Farewell) -> None:
        for message in messages:
            self.step(Told(message))

    def received(self, *messages: Message) -> None:
        for message in messages:
            self.step(Received(message))

    def published(self, *messages: Message) -> None:
        for message in messages:
            self.step(Published(message))

    def wake(self) -> None:
        self.step(TimePassed(self.trainer))

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.session.next_deadline() <= end:
            self.now = max(self.now, self.session.next_deadline())
            self.wake()
            assert self.session.next_deadline() > self.now, "a deadline that has passed was left undone"
        self.now = end

    def sent(self, kind: type[M]) -> list[M]:
        """Messages of this kind since the last look; forgets all others."""
        effects, self.effects = self.effects, []
        sent = [effect.message for effect in effects if isinstance(effect, Send)]
        return [message for message in sent if isinstance(message, kind)]

    def tells(self) -> list[LinkMessage]:
        """What the trainer was told since the last look, log lines excepted; forgets all others."""
        effects, self.effects = self.effects, []
        tells = [effect.message for effect in effects if isinstance(effect, Tell)]
        return [message for message in tells if not isinstance(message, Said)]


# --- introduction


def test_enrolling_subscribes_introduces_and_beats_at_once():
    listener = Listener(beating=False)
    listener.told(enrol())
    listen, introduction, beat = listener.effects
    assert listen == Listen(29511, (notice_topic("train"), TOPIC))
    assert introduction == Send(hello())
    assert isinstance(beat, Send)
    assert isinstance(beat.message, Heartbeat)
    listener.received(welcome())
    assert listener.tells() == [Ready()]


def test_before_it_is_enrolled_it_does_nothing():
    listener = Listener(beating=False)
    assert listener.session.next_deadline() == inf
    listener.wake()
    listener.told(InQuorum(EPOCH, CLAIM), LastWords("?"))
    listener.published(Beacon(EPOCH, 3), batch(4, notice("b")))
    assert listener.effects == []


def test_a_hello_is_repeated_with_a_growing_and_bounded_pause():
    listener = Listener(beating=False)
    listener.told(enrol())
    said_at: dict[float, None] = {listener.now: None}
    listener.effects.clear()
    while listener.now < 51.5:
        listener.advance(listener.session.next_deadline() - listener.now)
        if listener.sent(Hello):
            said_at[listener.now] = None
    times = list(said_at)
    pauses = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert pauses[:4] == pytest.approx([RETRY_FIRST_S, 2 * RETRY_FIRST_S, RETRY_LAST_S, RETRY_LAST_S])


def test_a_welcome_ends_the_repetition():
    listener = Listener()
    listener.advance(1.0)
    assert listener.sent(Hello) == []


def test_a_welcome_to_another_life_is_not_meant():
    listener = Listener(beating=False)
    listener.told(enrol(SECOND))
    listener.received(welcome(FIRST))
    assert listener.session.state is State.INTRODUCING
    assert Ready() not in listener.tells()


def test_what_happened_before_it_listened_is_asked_for():
    listener = Listener(beating=False)
    listener.told(enrol(seq=SEQ))
    listener.received(welcome(seq=SEQ + 2))
    assert listener.sent(Resync) == [Resync(TOKEN, EPOCH, SEQ)]


def test_a_refusal_is_logged_once_and_does_not_end_the_attempts():
    listener = Listener(beating=False)
    listener.told(enrol())
    listener.effects.clear()
    no = Rejected(Rejection.FULL, "full", "", 0)
    listener.received(no, no)
    assert listener.effects == [Tell(Said(logging.WARNING, "The lighthouse refuses this listener: full"))]
    listener.advance(1.0)
    assert listener.sent(Hello)


# --- beats


def test_it_beats_each_interval_with_what_it_sees_of_the_trainer():
    listener = Listener(threaded=True)
    listener.trainer = Trainer(Phase.COMPUTE, 12, 5, stopped=True)
    listener.advance(1.05)
    beats = listener.sent(Heartbeat)
    assert len(beats) == 10
    assert set(beats) == {Heartbeat(TOKEN, FIRST, True, True, Phase.COMPUTE, 12, 5)}


def test_it_beats_while_it_introduces_itself():
    listener = Listener(beating=False)
    listener.told(enrol())
    listener.advance(1.05)
    assert len(listener.sent(Heartbeat)) == 11


def test_after_a_stall_it_beats_at_once_and_once():
    listener = Listener()
    listener.now += 1.5
    listener.wake()
    listener.wake()
    assert len(listener.sent(Heartbeat)) == 1
    listener.advance(1.0)
    assert 10 <= len(listener.sent(Heartbeat)) <= 11, "the beats that were missed are not made up for"


def test_a_wake_up_that_is_late_by_a_little_does_not_shift_the_rhythm():
    listener = Listener()
    due = listener.session.next_deadline()
    listener.now = due + INTERVAL_S / 4
    listener.wake()
    assert listener.session.next_deadline() == pytest.approx(due + INTERVAL_S)


def test_an_early_wake_up_beats_not():
    listener = Listener()
    listener.wake()
    assert listener.effects == []


# --- notices


def test_the_next_batch_is_passed_on():
    listener = Listener()
    listener.published(batch(SEQ + 1, notice("b"), notice("c")))
    assert listener.effects == [Tell(Heard((notice("b"), notice("c"))))]
    listener.effects.clear()
    listener.published(Beacon(EPOCH, SEQ + 1))
    assert listener.effects == [], "nothing is missing"


def test_a_gap_is_asked_for_and_what_came_after_it_is_heard_at_once():
    listener = Listener()
    listener.published(batch(SEQ + 2, notice("c")))
    assert listener.effects == [Tell(Heard((notice("c"),))), Send(Resync(TOKEN, EPOCH, SEQ))]
    listener.effects.clear()
    listener.received(batch(SEQ + 2, notice("b"), notice("c")))
    assert listener.tells() == [Heard((notice("b"), notice("c")))]
    listener.published(Beacon(EPOCH, SEQ + 2), batch(SEQ + 3, notice("d")))
    assert listener.effects == [Tell(Heard((notice("d"),)))]


def test_each_beacon_asks_again_for_what_is_still_missing():
    listener = Listener()
    for _ in range(3):
        listener.published(Beacon(EPOCH, SEQ + 1))
    assert listener.sent(Resync) == [Resync(TOKEN, EPOCH, SEQ)] * 3
    listener.received(batch(SEQ + 1, notice("b")))
    listener.published(Beacon(EPOCH, SEQ + 1))
    assert listener.sent(Resync) == []


def test_a_late_answer_does_not_set_it_back():
    listener = Listener()
    listener.published(batch(SEQ + 1, notice("b")), batch(SEQ + 2, notice("c")))
    listener.received(batch(SEQ + 1, notice("b")))
    listener.effects.clear()
    listener.published(Beacon(EPOCH, SEQ + 2))
    assert listener.effects == []


def test_a_new_epoch_is_asked_for_from_its_beginning():
    listener = Listener()
    listener.published(Beacon(EPOCH + 1, 2))
    assert listener.sent(Resync) == [Resync(TOKEN, EPOCH + 1, 0)]
    listener.received(batch(2, notice("b"), epoch=EPOCH + 1))
    assert listener.tells() == [Heard((notice("b"),))]
    listener.published(Beacon(EPOCH + 1, 2))
    assert listener.sent(Resync) == []


def test_a_new_epoch_in_which_nothing_has_happened_needs_no_question():
    listener = Listener()
    listener.published(Beacon(EPOCH + 1, 0))
    assert listener.effects == []


def test_the_first_notice_of_a_new_epoch_is_heard():
    listener = Listener()
    listener.published(batch(1, notice("b"), epoch=EPOCH + 1))
    assert listener.tells() == [Heard((notice("b"),))]


def test_a_lighthouse_of_an_earlier_epoch_is_not_listened_to():
    listener = Listener()
    listener.published(Beacon(EPOCH - 1, SEQ + 9), batch(SEQ + 1, notice("b"), epoch=EPOCH - 1))
    listener.received(batch(SEQ + 1, notice("b"), epoch=EPOCH - 1))
    assert listener.effects == []


def test_with_proactive_recovery_off_it_beats_and_asks_for_no_notice():
    listener = Listener(hear_notices=False, beating=False)
    listener.told(enrol())
    assert listener.effects[0] == Listen(29511, (TOPIC,))
    listener.received(welcome(seq=SEQ + 2))
    assert listener.sent(Resync) == []
    listener.advance(1.05)
    assert len(listener.sent(Heartbeat)) == 10


def test_an_exclusion_is_passed_on():
    listener = Listener()
    listener.received(Excluded(TOKEN, QuorumId(EPOCH, 8)))
    assert listener.effects == [Tell(LeftOut(QuorumId(EPOCH, 8)))]


def test_what_is_none_of_a_listeners_business_is_ignored():
    listener = Listener()
    listener.received(QuorumFormed(EPOCH, Quorum(QuorumId(EPOCH, 8), "train", ())))
    assert listener.effects == []


# --- the trainer's own life is over


@pytest.mark.parametrize(
    "event",
    [
        Published(batch(SEQ + 1, notice("a", FIRST, TIMED_OUT))),
        Received(Rejoin(TOKEN, FIRST, TIMED_OUT)),
        Received(batch(SEQ + 1, notice("a", FIRST, TIMED_OUT))),
    ],
    ids=["notice", "rejoin", "resync"],
)
def test_an_own_failure_is_told_once_and_silences_the_beats(event: Event):
    listener = Listener()
    listener.step(event)
    assert listener.effects == [Tell(Over(FIRST, TIMED_OUT))]
    listener.effects.clear()
    listener.step(event)
    listener.advance(1.0)
    assert listener.effects == [], "neither beats nor Hello: only the trainer itself may come back"


def test_an_own_failure_does_not_hide_the_others():
    listener = Listener()
    listener.published(batch(SEQ + 1, notice("b"), notice("a", FIRST, TIMED_OUT)))
    assert listener.tells() == [Heard((notice("b"),)), Over(FIRST, TIMED_OUT)]


def test_an_own_departure_is_silence_without_news():
    listener = Listener()
    listener.published(batch(SEQ + 1, notice("a", FIRST, Cause(CauseKind.LEFT))))
    assert listener.session.state is State.SILENT
    listener.advance(1.0)
    assert listener.effects == []


def test_the_end_of_a_former_life_is_passed_on_and_ends_nothing():
    listener = Listener(beating=False)
    listener.told(enrol(SECOND))
    listener.received(welcome(SECOND))
    listener.effects.clear()
    listener.received(Rejoin(TOKEN, FIRST, TIMED_OUT))
    assert listener.effects == []
    listener.published(batch(SEQ + 1, notice("a", FIRST)))
    assert listener.tells() == [Heard((notice("a", FIRST),))]
    assert listener.session.state is State.BEATING


def test_a_silenced_listener_still_hears_of_the_others():
    listener = Listener()
    listener.received(Rejoin(TOKEN, FIRST, TIMED_OUT))
    listener.effects.clear()
    listener.published(batch(SEQ + 1, notice("b")))
    assert listener.tells() == [Heard((notice("b"),))]


def test_a_silenced_listener_does_not_introduce_itself_to_a_new_lighthouse():
    listener = Listener()
    listener.received(Rejoin(TOKEN, FIRST, TIMED_OUT))
    listener.received(HelloWanted(EPOCH + 1))
    assert listener.sent(Hello) == []


def test_enrolled_anew_it_beats_for_the_new_life():
    listener = Listener()
    listener.received(Rejoin(TOKEN, FIRST, TIMED_OUT))
    listener.effects.clear()
    listener.told(enrol(SECOND, SEQ + 1))
    assert listener.effects[0] == Send(hello(SECOND)), "it is subscribed already"
    listener.received(welcome(SECOND, SEQ + 1))
    listener.advance(1.05)
    beats = listener.sent(Heartbeat)
    assert {beat.incarnation for beat in beats} == {SECOND}
    assert len(beats) == 11


# --- a lighthouse that has forgotten us


def test_a_lighthouse_that_has_forgotten_us_is_told_who_we_are():
    listener = Listener()
    listener.told(InQuorum(EPOCH, CLAIM))
    listener.received(HelloWanted(EPOCH + 1))
    assert listener.sent(Hello) == [hello(FIRST, CLAIM)]
    listener.received(welcome(epoch=EPOCH + 1, seq=0))
    assert listener.tells() == [Ready()]
    listener.advance(1.0)
    assert listener.sent(Hello) == []


def test_many_requests_for_a_hello_are_answered_once():
    listener = Listener()
    listener.received(*[HelloWanted(EPOCH + 1)] * 5)
    assert len(listener.sent(Hello)) == 1


def test_a_claim_names_the_last_quorum_and_the_highest_epoch():
    listener = Listener()
    later = QuorumClaim(QuorumId(EPOCH + 2, 1), CLAIM.members)
    listener.told(InQuorum(EPOCH, CLAIM), InQuorum(EPOCH + 2, later))
    listener.received(HelloWanted(EPOCH + 1))
    assert listener.sent(Hello) == [hello(FIRST, later, EPOCH + 2)]


def test_an_epoch_heard_of_in_a_beacon_is_claimed_too():
    listener = Listener()
    listener.published(Beacon(EPOCH + 3, 0))
    listener.told(InQuorum(EPOCH, CLAIM))
    listener.received(HelloWanted(EPOCH + 1))
    assert listener.sent(Hello) == [hello(FIRST, CLAIM, EPOCH + 3)]


def test_a_new_life_claims_no_quorum_of_the_former_one():
    listener = Listener()
    listener.told(InQuorum(EPOCH, CLAIM), enrol(SECOND))
    assert listener.sent(Hello) == [hello(SECOND, None)]


# --- the trainer's death


def obituary(cause: Cause) -> Obituary:
    return Obituary("train", TOKEN, PROCESS, cause)


def test_a_death_is_told_at_once_and_until_it_is_acknowledged():
    listener = Listener()
    listener.step(Died(KILLED, 5))
    assert listener.effects == [Send(obituary(KILLED))]
    listener.effects.clear()
    listener.advance(1.0)
    assert set(listener.effects) == {Send(obituary(KILLED))}, "the dead do not beat"
    assert 4 <= len(listener.effects) <= 6
    listener.received(Ack(KIND_OF[Leave], TOKEN))
    assert listener.session.state is State.BURYING
    listener.received(Ack(KIND_OF[Obituary], TOKEN))
    assert listener.session.state is State.DONE
    assert listener.session.next_deadline() == inf


def test_a_burial_that_nobody_hears_of_ends():
    listener = Listener()
    listener.step(Died(KILLED, 5))
    listener.advance(BURIAL_S - 0.01)
    assert listener.session.state is State.BURYING
    listener.advance(0.01)
    assert listener.session.state is State.DONE


def test_a_burial_connects_afresh_and_does_not_say_hello():
    listener = Listener()
    listener.step(Died(KILLED, 5))
    listener.advance(SILENCE_FIRST_S)
    assert Reconnect() in listener.effects
    assert listener.sent(Hello) == []
    listener.received(HelloWanted(EPOCH + 1))
    assert listener.sent(Hello) == []


def test_an_end_with_exit_code_0_is_a_departure():
    listener = Listener()
    listener.step(Died(GONE_WELL, 5))
    assert listener.effects == [Send(Leave(TOKEN, FIRST, 5))]
    listener.received(Ack(KIND_OF[Leave], TOKEN))
    assert listener.session.state is State.DONE


def test_a_trainer_that_became_another_program_did_not_leave():
    listener = Listener()
    replaced = Cause(CauseKind.PROCESS_REPLACED, exit_code=0)
    listener.step(Died(replaced, 5))
    assert listener.effects == [Send(obituary(replaced))]


def test_the_obituary_holds_the_last_words():
    listener = Listener()
    listener.told(LastWords("ValueError: no"))
    failed = Cause(CauseKind.PROCESS_EXIT, exit_code=1)
    listener.step(Died(failed, 5))
    assert listener.effects == [Send(obituary(failed._replace(text="ValueError: no")))]


def test_a_death_after_the_life_was_over_is_told_nevertheless():
    """The process is gone for certain now: the lighthouse need not wait for it to come back."""
    listener = Listener()
    listener.received(Rejoin(TOKEN, FIRST, TIMED_OUT))
    listener.effects.clear()
    listener.step(Died(KILLED, 5))
    assert listener.effects == [Send(obituary(KILLED))]


def test_a_death_is_told_of_once():
    listener = Listener()
    listener.step(Died(KILLED, 5))
    listener.effects.clear()
    listener.step(Died(Cause(CauseKind.PROCESS_EXIT), 0))
    assert listener.effects == []


def test_one_that_never_enrolled_is_buried_without_a_word():
    listener = Listener(beating=False)
    listener.step(Died(KILLED, 0))
    assert listener.session.state is State.DONE
    assert listener.effects == []


def test_a_farewell_is_the_end():
    listener = Listener()
    listener.told(Farewell())
    assert listener.session.state is State.DONE
    assert listener.session.next_deadline() == inf
    listener.wake()
    listener.step(Died(KILLED, 5))
    listener.published(batch(SEQ + 1, notice("b")))
    assert listener.effects == []


# --- silence


def test_a_silent_lighthouse_is_connected_to_afresh_ever_more_rarely():
    listener = Listener()
    start = listener.now
    reconnects = []
    while listener.now < start + 60.0:
        listener.effects.clear()
        listener.advance(listener.session.next_deadline() - listener.now)
        if Reconnect() in listener.effects:
            assert listener.sent(Hello) == [hello()], "a new connection is introduced at once"
            reconnects.append(listener.now - start)
    pauses = [SILENCE_FIRST_S, 4.0, 8.0, *[SILENCE_LAST_S] * 4]
    assert reconnects == pytest.approx([sum(pauses[: nth + 1]) for nth in range(len(reconnects))])
    assert len(reconnects) >= 6


def test_it_beats_on_while_the_lighthouse_is_silent():
    listener = Listener()
    listener.advance(5.05)
    assert len(listener.sent(Heartbeat)) == pytest.approx(50, abs=1)


def test_beacons_are_a_sign_of_life():
    listener = Listener()
    for _ in range(20):
        listener.advance(0.5)
        listener.published(Beacon(EPOCH, SEQ))
    assert Reconnect() not in listener.effects


def test_a_word_after_long_silence_is_logged_and_restores_the_patience():
    listener = Listener()
    listener.advance(SILENCE_FIRST_S)
    listener.received(welcome())
    assert Tell(Said(logging.INFO, "The lighthouse is back")) in listener.effects
    listener.effects.clear()
    listener.advance(SILENCE_FIRST_S)
    assert Reconnect() in listener.effects


def test_a_silenced_listener_connects_afresh_without_introducing_itself():
    listener = Listener()
    listener.received(Rejoin(TOKEN, FIRST, TIMED_OUT))
    listener.advance(SILENCE_FIRST_S)
    assert Reconnect() in listener.effects
    assert listener.sent(Hello) == []
