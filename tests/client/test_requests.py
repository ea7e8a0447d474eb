"""The trainer's requests, message by message, in virtual time."""

from __future__ import annotations

from math import inf

import pytest

from procguard.client.requests import (
    SILENCE_FIRST_S,
    SILENCE_LAST_S,
    Effect,
    Reborn,
    Reconnect,
    Requests,
    Send,
    Unheard,
    describe_refusal,
    describe_wait,
)
from procguard.messages import (
    KIND_OF,
    Ack,
    Cause,
    CauseKind,
    Claim,
    Hello,
    HelloWanted,
    Leave,
    LookedUp,
    Lookup,
    Message,
    Obituary,
    Participant,
    Quorum,
    QuorumClaim,
    QuorumFormed,
    QuorumId,
    QuorumRequest,
    QuorumWaiting,
    Reason,
    Rejected,
    Rejection,
    Rejoin,
)
from tests.client.fakes import EPOCH, STOPPED, TOKEN, hello, life, participant, quorum, welcome

IN_USE = Rejected(Rejection.ID_IN_USE, "replica_id 'a' is in use by a living process", "host", 17)
BURIED = Rejected(Rejection.BURIED, "this process was reported dead", "", 0)
WAITING = QuorumWaiting(Reason.MEMBERS_MISSING, 1, 2, ("b",))


class Conversation:
    """One trainer's requests, with the clock."""

    def __init__(self) -> None:
        self.requests = Requests(hello())
        self.now = 100.0

    def join(self) -> tuple[Effect, ...]:
        return self.requests.join(self.now)

    def ask(self, asked: int = 1, ttl_s: float = 60.0) -> tuple[Effect, ...]:
        return self.requests.ask(participant("a", 0, round=asked), ttl_s, self.now)

    def leave(self, step: int = 5) -> tuple[Effect, ...]:
        return self.requests.leave(step, self.now)

    def got(self, message: Message) -> tuple[Effect, ...]:
        return self.requests.receive(message, self.now)

    def advance(self, seconds: float) -> list[Effect]:
        end, effects = self.now + seconds, list[Effect]()
        while self.requests.next_deadline() <= end:
            self.now = max(self.now, self.requests.next_deadline())
            effects += self.requests.time_passed(self.now)
        self.now = end
        return effects

    def member(self, number: int = 1, epoch: int = EPOCH) -> Conversation:
        self.join()
        self.got(welcome(number, epoch))
        assert self.requests.done
        return self

    def in_quorum(self, formed: Quorum, epoch: int = EPOCH) -> Conversation:
        self.ask()
        self.got(QuorumFormed(epoch, formed))
        assert self.requests.done
        return self


def sent(effects: object, kind: type) -> list[Message]:
    return [e.message for e in effects if isinstance(e, Send) and type(e.message) is kind]  # type: ignore[attr-defined]


def only(effects: object, kind: type) -> Message:
    (message,) = sent(effects, kind)
    return message


# --- join ---------------------------------------------------------------------------------------------


def test_joining_is_a_hello_without_a_claim() -> None:
    talk = Conversation()
    assert talk.join() == (Send(hello()),)
    assert talk.got(welcome()) == (Reborn(welcome()),)
    assert talk.requests.done
    assert talk.requests.welcome == welcome()
    assert talk.requests.next_deadline() == inf


def test_hello_is_repeated_with_a_growing_pause() -> None:
    talk = Conversation()
    talk.join()
    assert len(sent(talk.advance(1.0), Hello)) == 4, "after 0.1, 0.3, 0.55 and 0.8 s"


def test_a_member_that_joins_again_claims_what_it_is_and_if_that_is_over_begins_anew() -> None:
    talk = Conversation().member()
    assert only(talk.join(), Hello) == hello()._replace(epoch=EPOCH, claim=Claim(life(1), None))
    assert talk.got(welcome()) == ()
    assert talk.requests.done
    talk.join()
    assert only(talk.got(Rejoin(TOKEN, life(1), STOPPED)), Hello) == hello()._replace(epoch=EPOCH)


def test_one_whose_id_is_in_use_asks_on_until_the_holder_has_gone() -> None:
    talk = Conversation()
    talk.join()
    talk.got(IN_USE)
    assert talk.requests.refusal == IN_USE
    assert not talk.requests.refused
    assert len(sent(talk.advance(1.0), Hello)) == 4
    talk.got(welcome())
    assert talk.requests.done
    assert talk.requests.refusal is None


@pytest.mark.parametrize("reason", [r for r in Rejection if r is not Rejection.ID_IN_USE])
def test_every_other_refusal_is_for_good(reason: Rejection) -> None:
    talk = Conversation()
    talk.join()
    talk.got(Rejected(reason, "no", "", 0))
    assert talk.requests.refused


def test_having_given_up_it_says_nothing_more() -> None:
    talk = Conversation()
    talk.join()
    talk.requests.give_up()
    assert talk.advance(60.0) == []


# --- quorum -------------------------------------------------------------------------------------------


def test_a_quorum_is_asked_for_under_the_present_incarnation() -> None:
    talk = Conversation().member(3)
    request = only(talk.ask(), QuorumRequest)
    assert request == QuorumRequest(TOKEN, 60.0, participant("a", 3))


def test_the_request_is_repeated_with_the_time_that_is_left() -> None:
    talk = Conversation().member()
    talk.ask(ttl_s=0.5)
    ttls = [round(m.ttl_s, 2) for m in sent(talk.advance(1.0), QuorumRequest)]  # type: ignore[union-attr]
    assert ttls == [0.4, 0.2, 0.0, 0.0]


def test_the_answer_to_this_round_is_the_quorum() -> None:
    talk = Conversation().member()
    talk.ask(asked=2)
    formed = quorum(1, participant("a", round=2), participant("b", 2))
    talk.got(QuorumFormed(EPOCH, formed))
    assert talk.requests.done
    assert talk.requests.quorum == formed


@pytest.mark.parametrize(
    ("members", "epoch"),
    [
        ((participant("a", round=1), participant("b", 2)), EPOCH),  # another round
        ((participant("a", 9, round=2),), EPOCH),  # another life
        ((participant("b", 2, round=2),), EPOCH),  # not ours
        ((participant("a", round=2),), EPOCH - 1),  # an earlier lighthouse
    ],
)
def test_any_other_answer_is_not(members: tuple[Participant, ...], epoch: int) -> None:
    talk = Conversation().member()
    talk.ask(asked=2)
    talk.got(QuorumFormed(epoch, quorum(1, *members, epoch=epoch)))
    assert not talk.requests.done


def test_an_answer_that_nobody_waits_for_changes_nothing() -> None:
    talk = Conversation().member().in_quorum(quorum(1, participant("a")))
    talk.got(QuorumFormed(EPOCH, quorum(2, participant("a"))))
    assert talk.requests.quorum == quorum(1, participant("a"))


def test_what_is_waited_for_is_kept_for_the_error() -> None:
    talk = Conversation().member()
    talk.ask()
    talk.got(WAITING)
    assert talk.requests.waiting == WAITING
    talk.ask(asked=2)
    assert talk.requests.waiting is None


# --- a life that is over ------------------------------------------------------------------------------


def test_one_whose_life_is_over_joins_anew_on_the_way_to_the_quorum() -> None:
    talk = Conversation().member(1)
    talk.ask()
    assert only(talk.got(Rejoin(TOKEN, life(1), STOPPED)), Hello) == hello(epoch=EPOCH)
    effects = talk.got(welcome(4))
    assert effects[0] == Reborn(welcome(4)), "the listener hears of it before the lighthouse is asked"
    request = only(effects, QuorumRequest)
    assert request == QuorumRequest(TOKEN, 60.0, participant("a", 4))


def test_a_life_that_ended_in_silence_of_which_the_listener_said_nothing_is_the_listeners_fault() -> None:
    talk = Conversation().member(1)
    talk.ask()
    effects = talk.got(Rejoin(TOKEN, life(1), Cause(CauseKind.HEARTBEAT_TIMEOUT)))
    assert [type(effect) for effect in effects] == [Unheard, Send]
    talk.got(welcome(4))
    talk.requests.life_is_over(life(4), EPOCH)  # told by the listener
    assert Unheard() not in talk.got(Rejoin(TOKEN, life(4), Cause(CauseKind.HEARTBEAT_TIMEOUT)))


def test_a_later_life_hears_what_was_published_since_the_first_began() -> None:
    talk = Conversation()
    talk.join()
    talk.got(welcome(1, seq=5))
    talk.ask()
    talk.got(Rejoin(TOKEN, life(1), STOPPED))
    again = talk.got(welcome(4, seq=9))
    assert again[0] == Reborn(welcome(4, seq=5)), "a new listener would miss 6 to 9"
    talk.got(Rejoin(TOKEN, life(4), STOPPED))
    later = talk.got(welcome(7, epoch=EPOCH + 1, seq=3))
    assert later[0] == Reborn(welcome(7, epoch=EPOCH + 1, seq=0)), "another lighthouse counts anew"


def test_a_repeated_rejoin_or_a_late_welcome_of_the_old_life_changes_nothing() -> None:
    talk = Conversation().member(1)
    talk.ask()
    talk.got(Rejoin(TOKEN, life(1), STOPPED))
    assert talk.got(Rejoin(TOKEN, life(1), STOPPED)) == ()
    assert talk.got(welcome(1)) == ()
    talk.got(welcome(4))
    assert talk.got(Rejoin(TOKEN, life(1), STOPPED)) == ()
    assert talk.got(welcome(1)) == ()
    assert talk.requests.welcome == welcome(4)


def test_what_the_listener_knows_saves_the_round_trip_and_is_never_claimed_again() -> None:
    talk = Conversation().member(1)
    talk.requests.life_is_over(life(1), EPOCH)
    assert only(talk.ask(), Hello) == hello(epoch=EPOCH)
    talk.got(welcome(4))
    talk.requests.life_is_over(life(1), EPOCH)
    request = only(talk.ask(asked=2), QuorumRequest)
    assert request == QuorumRequest(TOKEN, 60.0, participant("a", 4, round=2))


def test_a_life_that_a_later_lighthouse_has_taken_at_its_word_goes_on() -> None:
    """The one before gave it up, and died; a request that was repeated had introduced us to the next."""
    talk = Conversation().member(1)
    talk.ask()
    assert only(talk.got(HelloWanted(EPOCH + 1)), Hello).claim == Claim(life(1), None)
    talk.got(welcome(1, EPOCH + 1))
    talk.got(QuorumFormed(EPOCH + 1, quorum(1, participant("a"), epoch=EPOCH + 1)))
    effects = talk.requests.life_is_over(life(1), EPOCH)
    assert effects == (Reborn(welcome(1, EPOCH + 1)),), "the listener, which fell silent, must beat again"
    assert only(talk.ask(asked=2), QuorumRequest).participant.incarnation == life(1)


def test_a_life_given_up_by_one_lighthouse_and_known_to_the_next_is_begun_again_by_the_listener_too() -> None:
    """Our listener claimed it before it heard that it is over: joining anew, we find ourselves alive."""
    talk = Conversation().member(1)
    talk.requests.life_is_over(life(1), EPOCH)
    talk.ask()
    assert talk.got(welcome(1, EPOCH)) == (), "an answer to what was said before"
    effects = talk.got(welcome(1, EPOCH + 1))
    assert effects[0] == Reborn(welcome(1, EPOCH + 1)), "the listener, which fell silent, must beat again"
    assert only(effects, QuorumRequest).participant.incarnation == life(1)


def test_a_lighthouse_that_was_told_of_an_earlier_life_by_a_delayed_hello_hears_of_the_present_one() -> None:
    talk = Conversation().member(4)
    talk.requests.life_is_over(life(4), EPOCH)
    talk.ask()
    assert talk.got(welcome(1, EPOCH)) == (), "a late one"
    assert only(talk.got(welcome(1, EPOCH + 1)), Hello).claim == Claim(life(4), None)
    assert talk.got(welcome(4, EPOCH + 1))[0] == Reborn(welcome(4, EPOCH + 1))


def test_a_new_life_claims_no_quorum_of_the_old_one() -> None:
    talk = Conversation().member(1).in_quorum(quorum(1, participant("a")))
    talk.ask(asked=2)
    talk.got(Rejoin(TOKEN, life(1), STOPPED))
    talk.got(welcome(4))
    introduction = only(talk.got(HelloWanted(EPOCH + 1)), Hello)
    assert introduction == hello(epoch=EPOCH, claim=Claim(life(4), None))


def test_joining_anew_while_the_id_is_in_use_waits_for_its_holder() -> None:
    """Another process took the name while this one was stopped."""
    talk = Conversation().member(1)
    talk.ask()
    talk.got(Rejoin(TOKEN, life(1), STOPPED))
    talk.got(IN_USE)
    assert not talk.requests.refused
    assert len(sent(talk.advance(1.0), Hello)) == 4
    talk.got(welcome(6))
    talk.got(QuorumFormed(EPOCH, quorum(2, participant("a", 6))))
    assert talk.requests.done


# --- a lighthouse that was restarted ------------------------------------------------------------------


def test_a_lighthouse_that_forgot_us_is_told_who_we_are_and_asked_again() -> None:
    formed = quorum(1, participant("a"), participant("b", 2))
    talk = Conversation().member().in_quorum(formed)
    talk.ask(asked=2)
    introduction = only(talk.got(HelloWanted(EPOCH + 1)), Hello)
    claimed = QuorumClaim(QuorumId(EPOCH, 1), (("a", life(1)), ("b", life(2))))
    assert introduction == hello(epoch=EPOCH, claim=Claim(life(1), claimed))
    effects = talk.got(welcome(1, EPOCH + 1))
    assert len(sent(effects, QuorumRequest)) == 1
    assert not any(isinstance(effect, Reborn) for effect in effects), "the same incarnation"


def test_a_lighthouse_of_a_lower_epoch_is_not_believed_until_our_hello_has_raised_it() -> None:
    talk = Conversation().member().in_quorum(quorum(1, participant("a"), epoch=EPOCH + 7), epoch=EPOCH + 7)
    talk.ask(asked=2)
    introduction = only(talk.got(HelloWanted(EPOCH + 3)), Hello)
    assert isinstance(introduction, Hello)
    assert introduction.epoch == EPOCH + 7, "seen in a quorum: the epoch was raised after our Welcome"
    assert talk.got(welcome(1, EPOCH + 3)) == ()
    assert len(sent(talk.got(welcome(1, EPOCH + 8)), QuorumRequest)) == 1


def test_one_that_knows_us_from_our_listener_is_raised_all_the_same() -> None:
    """Only we have seen the later epoch; a lighthouse that answers would never ask who we are."""
    talk = Conversation().member().in_quorum(quorum(1, participant("a"), epoch=EPOCH + 7), epoch=EPOCH + 7)
    talk.ask(asked=2)
    formed = quorum(1, participant("a", round=2), epoch=EPOCH + 3)
    introduction = only(talk.got(QuorumFormed(EPOCH + 3, formed)), Hello)
    assert isinstance(introduction, Hello)
    assert introduction.epoch == EPOCH + 7
    assert not talk.requests.done
    talk.got(welcome(1, EPOCH + 8))
    talk.got(QuorumFormed(EPOCH + 8, formed))
    assert talk.requests.done


# --- silence ------------------------------------------------------------------------------------------


def test_a_silent_lighthouse_is_asked_on_a_new_connection() -> None:
    talk = Conversation().member()
    talk.ask()
    effects = talk.advance(SILENCE_FIRST_S)
    assert isinstance(effects[-2], Reconnect)
    assert effects[-1] == Send(QuorumRequest(TOKEN, 58.0, participant("a")))


def test_if_it_stays_silent_connections_are_made_ever_more_rarely() -> None:
    talk = Conversation().member()
    talk.ask()
    gaps, last = [], talk.now
    for _ in range(5):
        while not any(isinstance(effect, Reconnect) for effect in talk.advance(0.5)):
            pass
        gaps.append(talk.now - last)
        last = talk.now
    assert gaps == [SILENCE_FIRST_S, 4, 8, SILENCE_LAST_S, SILENCE_LAST_S]
    talk.got(WAITING)
    assert Reconnect() in talk.advance(SILENCE_FIRST_S), "it had spoken again"


def test_one_that_says_why_we_wait_is_not_silent() -> None:
    talk = Conversation().member()
    talk.ask()
    for _ in range(20):
        talk.got(WAITING)
        assert not any(isinstance(effect, Reconnect) for effect in talk.advance(0.5))


def test_between_requests_nothing_is_due() -> None:
    talk = Conversation().member().in_quorum(quorum(1, participant("a")))
    talk.got(WAITING)
    assert talk.requests.next_deadline() == inf


# --- leave --------------------------------------------------------------------------------------------


def test_leaving_is_repeated_until_it_is_acknowledged() -> None:
    talk = Conversation().member(2)
    assert talk.leave(step=5) == (Send(Leave(TOKEN, life(2), 5)),)
    assert len(sent(talk.advance(1.0), Leave)) == 4
    talk.got(Ack(KIND_OF[Obituary], TOKEN))
    assert not talk.requests.done
    talk.got(Ack(KIND_OF[Leave], TOKEN))
    assert talk.requests.done


def test_one_that_never_joined_or_is_over_need_not_leave() -> None:
    assert Conversation().leave() == ()
    talk = Conversation().member()
    talk.requests.life_is_over(life(1), EPOCH)
    assert talk.leave() == ()
    assert talk.requests.done


def test_one_that_turns_out_to_be_over_while_leaving_is_gone() -> None:
    talk = Conversation().member()
    talk.leave()
    assert talk.got(Rejoin(TOKEN, life(1), STOPPED)) == ()
    assert talk.requests.done


def test_a_lighthouse_that_was_restarted_is_told_who_leaves() -> None:
    talk = Conversation().member()
    talk.leave(step=5)
    assert only(talk.got(HelloWanted(EPOCH + 1)), Hello).claim == Claim(life(1), None)
    assert only(talk.got(welcome(1, EPOCH + 1)), Leave) == Leave(TOKEN, life(1), 5)
    talk.got(Ack(KIND_OF[Leave], TOKEN))
    assert talk.requests.done


def test_after_a_request_that_met_its_end_a_leave_says_nothing_and_goes_on_saying_nothing() -> None:
    talk = Conversation().member()
    talk.ask()
    talk.got(Rejoin(TOKEN, life(1), STOPPED))
    assert talk.leave() == ()
    assert talk.advance(60.0) == []


# --- words --------------------------------------------------------------------------------------------


def test_why_there_is_no_quorum_in_words() -> None:
    assert describe_wait(WAITING) == "members missing: 1 of 2 replicas; waiting for b"
    assert describe_wait(WAITING._replace(missing=())) == "members missing: 1 of 2 replicas"
    assert describe_wait(None) == "the lighthouse did not answer"


def test_a_refusal_says_what_to_do() -> None:
    said = describe_refusal(IN_USE, "a")
    assert "pid 17 on host" in said
    assert "another replica_id than 'a'" in said
    assert describe_refusal(BURIED, "a").endswith("start the trainer anew")
    assert describe_refusal(Rejected(Rejection.FULL, "full", "", 0), "a") == "full"


# --- one of several ranks -----------------------------------------------------------------------------


def of_a_group() -> Conversation:
    talk = Conversation()
    talk.requests = Requests(hello(group_world_size=2, group_rank=1))
    talk.join()
    talk.got(welcome())
    return talk


def test_a_rank_asks_where_its_group_is_served_until_somebody_knows() -> None:
    talk = of_a_group()
    asked = Send(Lookup(TOKEN))
    assert talk.requests.lookup(talk.now) == (asked,)
    assert talk.got(LookedUp(life(1), "")) == ()
    assert asked in talk.advance(0.5)
    assert talk.got(LookedUp(life(2), "elsewhere:1")) == ()
    assert not talk.requests.done
    assert talk.got(LookedUp(life(1), "node0:1")) == ()
    assert talk.requests.done
    assert talk.requests.group_address == "node0:1"


def test_a_lookup_at_a_lighthouse_started_anew_says_hello_first() -> None:
    talk = of_a_group()
    talk.requests.lookup(talk.now)
    (said,) = talk.got(HelloWanted(EPOCH + 1))
    assert isinstance(said, Send)
    assert isinstance(said.message, Hello)
    assert said.message.claim == Claim(life(1), None)
    assert talk.got(welcome(epoch=EPOCH + 1)) == (Send(Lookup(TOKEN)),)


def test_a_rank_never_joins_anew_by_itself() -> None:
    talk = of_a_group()
    talk.requests.lookup(talk.now)
    assert talk.got(Rejoin(TOKEN, life(1), STOPPED)) == ()
    assert talk.requests.done
    assert talk.requests.life_over
    assert talk.advance(10.0) == []
