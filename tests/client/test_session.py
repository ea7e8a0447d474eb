"""The listener's conversation, event by event, in virtual time."""

from __future__ import annotations

from math import inf

import pytest

from procguard.client.link_words import Farewell, Heard, InQuorum, LastWords, LeftOut, Over, Ready, Said
from procguard.client.session import (
    BEACON_PATIENCE_S,
    BURIAL_S,
    DEAFNESS_S,
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
    Leave,
    Message,
    NoticeBatch,
    Obituary,
    Phase,
    QuorumClaim,
    QuorumId,
    Rejected,
    Rejection,
    Rejoin,
    Resync,
    notice_topic,
)
from tests.client.fakes import EPOCH, JOB, KILLED, LEFT, STOPPED, TOKEN, enrol, life, notice, welcome

TOPIC = b"\0own topic"


class Conversation:
    """One session, what it has said and what it has told its trainer."""

    def __init__(self, *, threaded: bool = False, hear_notices: bool = True) -> None:
        self.session = Session(threaded=threaded, topic=TOPIC, hear_notices=hear_notices)
        self.now = 100.0
        self.trainer = Trainer(Phase.COMPUTE, 7, 3)
        self.effects: list[Effect] = []

    def step(self, event: Event) -> list[Effect]:
        effects = list(self.session.step(event, self.now))
        self.effects += effects
        return effects

    def told(self, message: object) -> list[Effect]:
        return self.step(Told(message))  # type: ignore[arg-type]

    def got(self, message: Message) -> list[Effect]:
        return self.step(Received(message))

    def heard(self, message: Message) -> list[Effect]:
        return self.step(Published(message))

    def died(self, cause: Cause = KILLED, step: int = 3) -> list[Effect]:
        return self.step(Died(cause, step))

    def advance(self, seconds: float) -> list[Effect]:
        """Let time pass as a host does: whenever something is due."""
        end, effects = self.now + seconds, list[Effect]()
        for _ in range(10_000):
            due = self.session.next_deadline()
            if due > end:
                self.now = end
                return effects
            self.now = max(self.now, due)
            effects += self.step(TimePassed(self.trainer))
        raise AssertionError("a deadline that has passed is not dealt with")

    def beating(self, number: int = 1, **fields: int) -> Conversation:
        """Enrolled and welcome."""
        self.told(enrol(number, **fields))
        self.got(welcome(number, **fields))
        self.advance(0)
        assert self.session.state is State.BEATING
        return self


def sent(effects: list[Effect], kind: type) -> list[Message]:
    return [e.message for e in effects if isinstance(e, Send) and type(e.message) is kind]


def told(effects: list[Effect], kind: type) -> list[object]:
    return [e.message for e in effects if isinstance(e, Tell) and type(e.message) is kind]


def batch(seq: int, *notices: object, epoch: int = EPOCH) -> NoticeBatch:
    return NoticeBatch(epoch, seq, notices)  # type: ignore[arg-type]


# --- beginning ----------------------------------------------------------------------------------------


def test_before_it_is_enrolled_it_has_nothing_to_do() -> None:
    talk = Conversation()
    assert talk.session.next_deadline() == inf
    assert talk.step(TimePassed(Trainer())) == []
    assert talk.heard(Beacon(EPOCH, 3)) == []
    assert talk.heard(batch(4, notice("b"))) == []


def test_once_enrolled_it_subscribes_says_hello_with_its_claim_and_beats() -> None:
    talk = Conversation()
    listen, introduction = talk.told(enrol(1, seq=4))
    assert listen == Listen(29511, (notice_topic(JOB), TOPIC))
    assert isinstance(introduction, Send)
    assert isinstance(introduction.message, Hello)
    assert introduction.message.claim == Claim(life(1), None)
    assert introduction.message.topic == TOPIC
    (beat,) = sent(talk.advance(0), Heartbeat)
    assert beat == Heartbeat(TOKEN, life(1), False, False, Phase.COMPUTE, 7, 3), "of the trainer as it is"


def test_it_is_ready_when_it_is_welcome() -> None:
    talk = Conversation()
    talk.told(enrol())
    assert told(talk.got(welcome()), Ready) == [Ready()]
    assert told(talk.got(welcome()), Ready) == [], "a second answer to a repeated Hello"


def test_a_welcome_to_another_life_or_of_a_lower_epoch_does_not_count() -> None:
    talk = Conversation()
    talk.told(enrol(2))
    assert talk.got(welcome(1)) == []
    assert talk.got(welcome(2, epoch=EPOCH - 1)) == []
    assert talk.session.state is State.INTRODUCING


def test_hello_is_repeated_with_a_growing_pause_until_it_is_answered() -> None:
    talk = Conversation()
    talk.told(enrol())
    assert len(sent(talk.advance(1.0), Hello)) == 4, "after 0.1, 0.3, 0.55 and 0.8 s"
    talk.got(welcome())
    assert sent(talk.advance(1.0), Hello) == []


def test_it_beats_at_the_interval_and_catches_up_with_no_burst() -> None:
    talk = Conversation().beating()
    talk.got(Beacon(EPOCH, 0))
    assert len(sent(talk.advance(1.0), Heartbeat)) == 10
    talk.now += 1.0  # the process was held up
    assert len(sent(talk.advance(0.1), Heartbeat)) <= 3


def test_beats_take_each_way_in_turn_and_all_else_takes_the_first() -> None:
    talk = Conversation().beating()
    said = [effect for effect in talk.advance(1.0) if isinstance(effect, Send)]
    ways = [effect.aside for effect in said if isinstance(effect.message, Heartbeat)]
    assert ways in ([True, False] * 5, [False, True] * 5)
    said += [effect for effect in talk.step(Died(KILLED, 3)) if isinstance(effect, Send)]
    assert not any(effect.aside for effect in said if not isinstance(effect.message, Heartbeat))


def test_a_thread_says_so_in_its_beats() -> None:
    talk = Conversation(threaded=True).beating()
    (beat,) = sent(talk.advance(0.1), Heartbeat)
    assert isinstance(beat, Heartbeat)
    assert beat.threaded


def test_a_stopped_trainer_is_said_to_be_stopped() -> None:
    talk = Conversation().beating()
    talk.trainer = Trainer(Phase.COLLECTIVE, 8, 4, stopped=True)
    (beat,) = sent(talk.advance(0.1), Heartbeat)
    assert beat == Heartbeat(TOKEN, life(1), False, True, Phase.COLLECTIVE, 8, 4)


# --- notices ------------------------------------------------------------------------------------------


def test_notices_are_passed_on_with_the_epoch_of_who_gave_them() -> None:
    talk = Conversation().beating()
    effects = talk.heard(batch(1, notice("b"), notice("c")))
    assert effects == [Tell(Heard(EPOCH, (notice("b"), notice("c"))))]


def test_without_proactive_recovery_no_notice_is_passed_on_but_ones_own_end_is() -> None:
    talk = Conversation(hear_notices=False).beating()
    assert told(talk.heard(batch(1, notice("b"))), Heard) == []
    assert told(talk.heard(batch(2, notice("a", cause=STOPPED))), Over) == [Over(EPOCH, life(1), STOPPED)]


def test_a_gap_is_told_from_the_next_batch_and_asked_for() -> None:
    talk = Conversation().beating(seq=3)
    effects = talk.heard(batch(6, notice("c")))
    assert told(effects, Heard) == [Heard(EPOCH, (notice("c"),))], "not held back for what is missing"
    assert sent(effects, Resync) == [Resync(TOKEN, EPOCH, 3)]
    effects = talk.got(batch(6, notice("b"), notice("c")))
    assert told(effects, Heard) == [Heard(EPOCH, (notice("b"), notice("c")))]
    assert sent(talk.heard(Beacon(EPOCH, 6)), Resync) == []


def test_a_gap_is_told_from_the_beacon_and_asked_for_until_it_is_closed() -> None:
    talk = Conversation().beating()
    assert sent(talk.heard(Beacon(EPOCH, 1)), Resync) == [Resync(TOKEN, EPOCH, 0)]
    assert sent(talk.heard(Beacon(EPOCH, 1)), Resync) == [Resync(TOKEN, EPOCH, 0)], "that one was lost"
    talk.got(batch(1, notice("b")))
    assert sent(talk.heard(Beacon(EPOCH, 1)), Resync) == []


def test_a_gap_is_told_from_the_welcome() -> None:
    talk = Conversation()
    talk.told(enrol(seq=2))
    assert sent(talk.got(welcome(seq=5)), Resync) == [Resync(TOKEN, EPOCH, 2)]


def test_a_later_lighthouse_counts_its_notices_anew() -> None:
    talk = Conversation().beating(seq=9)
    assert sent(talk.heard(Beacon(EPOCH + 1, 0)), Resync) == []
    effects = talk.heard(batch(1, notice("b"), epoch=EPOCH + 1))
    assert told(effects, Heard) == [Heard(EPOCH + 1, (notice("b"),))]
    assert sent(effects, Resync) == []


def test_the_first_word_of_a_later_lighthouse_may_be_a_batch() -> None:
    talk = Conversation().beating(seq=9)
    effects = talk.heard(batch(2, notice("b"), epoch=EPOCH + 1))
    assert told(effects, Heard) == [Heard(EPOCH + 1, (notice("b"),))]
    assert sent(effects, Resync) == [Resync(TOKEN, EPOCH + 1, 0)]


@pytest.mark.parametrize("word", [batch(4, notice("b"), epoch=EPOCH - 1), Beacon(EPOCH - 1, 9)])
def test_a_lighthouse_of_a_lower_epoch_is_not_listened_to_until_our_hello_has_raised_it(
    word: Message,
) -> None:
    """It may know us, from our trainer, and so would never ask who we are."""
    talk = Conversation().beating(seq=3)
    (introduction,) = talk.heard(word)
    assert isinstance(introduction, Send)
    assert isinstance(introduction.message, Hello)
    assert introduction.message.epoch == EPOCH
    assert talk.heard(word) == [], "it is being said already"
    talk.got(welcome(epoch=EPOCH + 1))
    assert told(talk.heard(batch(1, notice("b"), epoch=EPOCH + 1)), Heard) == [
        Heard(EPOCH + 1, (notice("b"),))
    ]


def test_what_an_earlier_lighthouse_gave_to_catch_up_with_is_dropped() -> None:
    talk = Conversation().beating(seq=3)
    assert talk.got(batch(4, notice("b"), epoch=EPOCH - 1)) == []


def test_what_is_heard_meanwhile_is_not_skipped_by_a_new_enrolment() -> None:
    talk = Conversation().beating(seq=3)
    talk.told(enrol(2, seq=5))
    assert sent(talk.got(welcome(2, seq=5)), Resync) == [Resync(TOKEN, EPOCH, 3)]


def test_lives_of_ones_own_name_are_no_peers() -> None:
    talk = Conversation().beating(3)
    assert talk.heard(batch(1, notice("a", 2), notice("a", 1, LEFT))) == []


# --- the end of a life --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["rejoin", "notice"])
def test_when_its_incarnation_is_over_it_tells_once_and_falls_silent(how: str) -> None:
    talk = Conversation().beating()
    over = Rejoin(TOKEN, life(1), STOPPED)
    effects = talk.got(over) if how == "rejoin" else talk.heard(batch(1, notice("a", cause=STOPPED)))
    assert told(effects, Over) == [Over(EPOCH, life(1), STOPPED)]
    assert talk.got(over) == []
    assert sent(talk.advance(1.0), Heartbeat) == []
    assert sent(talk.effects[-3:], Hello) == []
    assert talk.session.state is State.SILENT


def test_silent_it_still_hears_what_becomes_of_the_others() -> None:
    talk = Conversation().beating()
    talk.got(Rejoin(TOKEN, life(1), STOPPED))
    assert told(talk.heard(batch(1, notice("b"))), Heard) == [Heard(EPOCH, (notice("b"),))]


def test_a_rejoin_of_an_earlier_life_changes_nothing() -> None:
    talk = Conversation().beating(2)
    assert talk.got(Rejoin(TOKEN, life(1), STOPPED)) == []
    assert talk.session.state is State.BEATING


def test_a_new_enrolment_brings_it_back_under_the_new_incarnation_and_with_no_old_claim() -> None:
    talk = Conversation().beating()
    talk.told(InQuorum(EPOCH, QuorumClaim(QuorumId(EPOCH, 1), (("a", life(1)),))))
    talk.got(Rejoin(TOKEN, life(1), STOPPED))
    (introduction,) = sent(talk.told(enrol(5)), Hello)
    assert isinstance(introduction, Hello)
    assert introduction.claim == Claim(life(5), None)
    (beat,) = sent(talk.advance(0), Heartbeat)
    assert isinstance(beat, Heartbeat)
    assert beat.incarnation == life(5)
    assert not any(isinstance(effect, Listen) for effect in talk.effects[-4:]), "it subscribes already"


def test_a_trainer_that_left_is_told_nothing_about_that() -> None:
    talk = Conversation().beating()
    assert told(talk.got(Rejoin(TOKEN, life(1), LEFT)), Over) == []
    assert talk.session.state is State.SILENT


def test_being_left_out_is_passed_on() -> None:
    talk = Conversation().beating()
    assert talk.got(Excluded(TOKEN, QuorumId(EPOCH, 4))) == [Tell(LeftOut(QuorumId(EPOCH, 4)))]


# --- a lighthouse that was restarted, or is silent ----------------------------------------------------


def test_to_a_lighthouse_that_forgot_it_it_says_hello_with_its_quorum() -> None:
    talk = Conversation().beating()
    claimed = QuorumClaim(QuorumId(EPOCH, 1), (("a", life(1)), ("b", life(2))))
    talk.told(InQuorum(EPOCH + 5, claimed))
    (introduction,) = sent(talk.got(HelloWanted(EPOCH + 1)), Hello)
    assert isinstance(introduction, Hello)
    assert introduction.claim == Claim(life(1), claimed)
    assert introduction.epoch == EPOCH + 5, "the highest seen: a lighthouse below it raises its own"
    assert sent(talk.got(HelloWanted(EPOCH + 1)), Hello) == [], "it is being said already"


def test_silent_it_does_not_answer_a_lighthouse_that_forgot_it() -> None:
    talk = Conversation().beating()
    talk.got(Rejoin(TOKEN, life(1), STOPPED))
    assert talk.got(HelloWanted(EPOCH + 1)) == [], "only the trainer may join again"


def test_a_refusal_is_said_once() -> None:
    talk = Conversation()
    talk.told(enrol())
    refused = Rejected(Rejection.BURIED, "this process was reported dead", "", 0)
    (said,) = told(talk.got(refused), Said)
    assert isinstance(said, Said)
    assert "reported dead" in said.text
    assert talk.got(refused) == []


@pytest.mark.parametrize("hear_notices", [True, False])
def test_a_quiet_lighthouse_is_no_silent_one(hear_notices: bool) -> None:
    """It answers no beat; its beacon alone says that it lives."""
    talk = Conversation(hear_notices=hear_notices)
    (listen, _) = talk.told(enrol())
    assert listen == Listen(29511, (notice_topic(JOB), TOPIC))
    talk.got(welcome())
    for _ in range(60):
        talk.heard(Beacon(EPOCH, 0))
        assert not any(isinstance(effect, Reconnect) for effect in talk.advance(0.5))


def test_a_silent_lighthouse_is_connected_to_afresh_ever_more_rarely() -> None:
    talk = Conversation().beating()
    assert not any(isinstance(effect, Reconnect) for effect in talk.advance(SILENCE_FIRST_S - 0.01))
    effects = talk.advance(0.02)
    assert effects.index(Reconnect()) < effects.index(Send(sent(effects, Hello)[0])), "on the new connection"
    gaps, last = [], talk.now
    for _ in range(4):
        while not any(isinstance(effect, Reconnect) for effect in talk.advance(0.5)):
            pass
        gaps.append(round(talk.now - last))
        last = talk.now
    assert gaps == [4, 8, SILENCE_LAST_S, SILENCE_LAST_S]
    assert told(talk.heard(Beacon(EPOCH, 0)), Said) == [Said(20, "The lighthouse is back")]


def test_where_only_beacons_are_lost_it_asks_and_keeps_its_connections() -> None:
    talk = Conversation().beating(seq=4)
    began = talk.now
    while talk.now < began + DEAFNESS_S - BEACON_PATIENCE_S:
        effects = talk.advance(BEACON_PATIENCE_S)
        assert sent(effects, Resync) == [Resync(TOKEN, EPOCH, 4)]
        assert not any(isinstance(effect, Reconnect) for effect in effects)
        talk.got(NoticeBatch(EPOCH, 4, ()))
    effects = talk.advance(BEACON_PATIENCE_S)
    assert any(isinstance(effect, Reconnect) for effect in effects), "nothing that is published gets through"
    assert "though it answers" in told(effects, Said)[0].text
    talk.heard(Beacon(EPOCH, 4))
    assert sent(talk.advance(BEACON_PATIENCE_S / 2), Resync) == []


def test_silent_after_its_end_it_keeps_its_connection_but_does_not_introduce_itself() -> None:
    talk = Conversation().beating()
    talk.got(Rejoin(TOKEN, life(1), STOPPED))
    effects = talk.advance(SILENCE_FIRST_S)
    assert any(isinstance(effect, Reconnect) for effect in effects)
    assert sent(effects, Hello) == []


# --- the trainer's end --------------------------------------------------------------------------------


def test_a_dead_trainer_is_buried_until_the_lighthouse_has_heard_it() -> None:
    talk = Conversation().beating()
    talk.told(LastWords("ValueError: no such shape"))
    (obituary,) = sent(talk.died(), Obituary)
    assert isinstance(obituary, Obituary)
    assert obituary.token == TOKEN
    assert obituary.cause == KILLED._replace(text="ValueError: no such shape")
    effects = talk.advance(1.0)
    assert len(sent(effects, Obituary)) == 4
    assert sent(effects, Heartbeat) == []
    talk.got(Ack(KIND_OF[Leave], TOKEN))
    assert talk.session.state is State.BURYING
    talk.got(Ack(KIND_OF[Obituary], TOKEN))
    assert talk.session.state is State.DONE
    assert talk.session.next_deadline() == inf


def test_what_the_kernel_knows_of_the_end_goes_before_last_words() -> None:
    talk = Conversation().beating()
    talk.told(LastWords("KeyboardInterrupt: "))
    (obituary,) = sent(talk.died(KILLED._replace(text="core")), Obituary)
    assert isinstance(obituary, Obituary)
    assert obituary.cause.text == "core"


def test_an_exit_with_0_is_a_departure() -> None:
    talk = Conversation().beating()
    effects = talk.died(Cause(CauseKind.PROCESS_EXIT, exit_code=0), step=8)
    assert effects == [Send(Leave(TOKEN, life(1), 8))]
    talk.got(Ack(KIND_OF[Leave], TOKEN))
    assert talk.session.state is State.DONE


def test_a_departure_that_a_restarted_lighthouse_cannot_place_is_introduced() -> None:
    talk = Conversation().beating()
    talk.died(Cause(CauseKind.PROCESS_EXIT, exit_code=0), step=8)
    effects = talk.got(HelloWanted(EPOCH + 1))
    assert [type(message) for message in (e.message for e in effects)] == [Hello, Leave]
    talk.got(Ack(KIND_OF[Leave], TOKEN))
    assert talk.session.state is State.DONE


@pytest.mark.parametrize(
    "cause",
    [
        Cause(CauseKind.PROCESS_EXIT, exit_code=3),
        Cause(CauseKind.PROCESS_EXIT),
        Cause(CauseKind.PROCESS_REPLACED),
        Cause(CauseKind.PROCESS_REPLACED, exit_code=0),
    ],
)
def test_any_other_end_is_a_failure(cause: Cause) -> None:
    talk = Conversation().beating()
    (obituary,) = sent(talk.died(cause), Obituary)
    assert isinstance(obituary, Obituary)
    assert obituary.cause == cause


def test_without_a_lighthouse_to_hear_it_the_burial_ends_some_day() -> None:
    talk = Conversation().beating()
    talk.died()
    talk.advance(BURIAL_S - 0.01)
    assert talk.session.state is State.BURYING
    assert any(isinstance(effect, Reconnect) for effect in talk.effects), "its connection may be the trouble"
    talk.advance(0.01)
    assert talk.session.state is State.DONE


def test_a_trainer_that_dies_before_it_was_enrolled_leaves_nothing_to_say() -> None:
    talk = Conversation()
    assert talk.died() == []
    assert talk.session.state is State.DONE


def test_the_dead_are_not_enrolled() -> None:
    """What was said just before the death may be read after it."""
    talk = Conversation().beating()
    talk.died()
    assert talk.told(enrol(2)) == []
    assert sent(talk.advance(1.0), Heartbeat) == []
    assert talk.session.state is State.BURYING


def test_a_second_death_is_no_news() -> None:
    talk = Conversation().beating()
    talk.died()
    assert talk.died() == []


def test_the_dead_of_a_life_that_was_over_are_buried_all_the_same() -> None:
    """So that no process with this token is taken for alive later."""
    talk = Conversation().beating()
    talk.got(Rejoin(TOKEN, life(1), STOPPED))
    assert len(sent(talk.died(), Obituary)) == 1
    assert told(talk.got(Rejoin(TOKEN, life(1), STOPPED)), Over) == []


def test_farewell_ends_it_without_a_word() -> None:
    talk = Conversation().beating()
    assert talk.told(Farewell()) == []
    assert talk.session.state is State.DONE
    assert talk.died() == []
