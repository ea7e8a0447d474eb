"""Who trains together: the design's rules as a table, then as properties of any situation whatever."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procguard.lighthouse.quorum import MISSING_NAMED_MAX, Conditions, Formed, Standing, Waiting, decide
from procguard.messages import Incarnation, Participant, QuorumClaim, QuorumId, QuorumWaiting, Reason

PLAIN = Conditions(min_replicas=1, settling=False, claimed=False, join_over=False)


def asking(name: str, number: int = 1, *, suspect: bool = False, shrink_only: bool = False) -> Standing:
    incarnation = Incarnation(1, number)
    request = Participant(name, incarnation, 1, 0, 0, 1, "", shrink_only, 0, b"", ())
    return Standing(name, incarnation, suspect, request, counted=True)


def idle(name: str, number: int = 1, *, suspect: bool = False, counted: bool = True) -> Standing:
    return Standing(name, Incarnation(1, number), suspect, None, counted)


def starting(name: str) -> Standing:
    """Has joined and never asked."""
    return idle(name, counted=False)


def quorum(*names: str) -> QuorumClaim:
    """With each at its first incarnation."""
    return QuorumClaim(QuorumId(1, 1), tuple((name, Incarnation(1, 1)) for name in names))


def names(outcome: Formed | Waiting) -> str:
    assert isinstance(outcome, Formed), outcome
    return "".join(p.replica_id for p in outcome.participants)


class TestFirstQuorum:
    def test_nobody_asked(self) -> None:
        assert decide([], None, PLAIN) == Waiting(Reason.NOBODY_ASKED, 0, 1)
        assert decide([starting("a")], None, PLAIN) == Waiting(Reason.NOBODY_ASKED, 0, 1)

    def test_every_live_member_asks(self) -> None:
        assert names(decide([asking("a"), asking("b"), asking("c")], None, PLAIN)) == "abc"

    def test_one_that_is_starting_is_waited_for(self) -> None:
        outcome = decide([asking("a"), starting("b"), asking("c")], None, PLAIN)
        assert outcome == Waiting(Reason.MEMBERS_MISSING, 2, 3, ("b",))
        assert outcome.numbers_hold

    def test_but_for_no_longer_than_the_join_timeout(self) -> None:
        over = PLAIN._replace(join_over=True)
        outcome = decide([asking("a"), starting("b"), asking("c")], None, over)
        assert names(outcome) == "ac"
        assert outcome.excluded == (), "it was in no quorum, so there is nothing to abort"

    def test_too_few(self) -> None:
        for join_over in (False, True):
            conditions = PLAIN._replace(min_replicas=3, join_over=join_over)
            outcome = decide([asking("a"), asking("b"), starting("c")], None, conditions)
            assert outcome == Waiting(Reason.TOO_FEW_REPLICAS, 2, 3, ("c",))
            assert not outcome.numbers_hold

    def test_no_majority_of_those_who_ever_asked(self) -> None:
        for join_over in (False, True):
            conditions = PLAIN._replace(join_over=join_over)
            outcome = decide([asking("a"), asking("b"), idle("c"), idle("d")], None, conditions)
            assert outcome == Waiting(Reason.NO_MAJORITY, 2, 3, ("c", "d"))
            assert not outcome.numbers_hold

    def test_one_past_its_progress_bound_does_not_count(self) -> None:
        live = [asking("a"), asking("b"), idle("c"), idle("d", counted=False)]
        assert decide(live, None, PLAIN) == Waiting(Reason.MEMBERS_MISSING, 2, 4, ("c", "d"))

    def test_a_suspect_counts_but_is_no_candidate(self) -> None:
        live = [asking("a"), asking("b", suspect=True)]
        assert decide(live, None, PLAIN) == Waiting(Reason.NO_MAJORITY, 1, 2, ("b",))
        live = [asking("a"), asking("b", suspect=True), asking("c")]
        assert decide(live, None, PLAIN) == Waiting(Reason.MEMBERS_MISSING, 2, 3, ("b",))

    def test_who_is_missing_is_named_up_to_a_bound(self) -> None:
        live = [asking("a"), *[starting(f"s{number:02d}") for number in range(50)]]
        outcome = decide(live, None, PLAIN)
        assert outcome[:3] == (Reason.MEMBERS_MISSING, 1, 51)
        assert len(outcome.missing) == MISSING_NAMED_MAX


class TestNextQuorum:
    def test_incumbents_do_not_wait_for_a_newcomer_that_is_starting(self) -> None:
        assert names(decide([asking("a"), asking("b"), starting("n")], quorum("a", "b"), PLAIN)) == "ab"

    def test_a_newcomer_that_asks_is_taken_in(self) -> None:
        assert names(decide([asking("a"), asking("b"), asking("n")], quorum("a", "b"), PLAIN)) == "abn"

    def test_a_straggler_is_waited_for(self) -> None:
        live = [asking("a"), idle("b"), asking("c")]
        outcome = decide(live, quorum("a", "b", "c"), PLAIN)
        assert outcome == Waiting(Reason.PREVIOUS_MEMBERS_MISSING, 2, 3, ("b",))

    def test_and_then_left_out_and_told(self) -> None:
        live = [asking("a"), idle("b"), asking("c"), starting("n")]
        outcome = decide(live, quorum("a", "b", "c"), PLAIN._replace(join_over=True))
        assert names(outcome) == "ac"
        assert outcome.excluded == ("b",)

    def test_the_dead_are_not_waited_for(self) -> None:
        assert names(decide([asking("a"), asking("b")], quorum("a", "b", "c", "d", "e"), PLAIN)) == "ab"

    def test_one_that_came_back_is_another(self) -> None:
        reborn = starting("c")._replace(incarnation=Incarnation(1, 2))
        assert names(decide([asking("a"), asking("b"), reborn], quorum("a", "b", "c"), PLAIN)) == "ab"

    def test_newcomers_alone_wait_for_the_incumbents(self) -> None:
        live = [idle("a"), asking("n"), asking("o")]
        outcome = decide(live, quorum("a"), PLAIN)
        assert outcome == Waiting(Reason.PREVIOUS_MEMBERS_MISSING, 0, 1, ("a",))

    def test_too_few_even_though_all_incumbents_ask(self) -> None:
        outcome = decide([asking("a")], quorum("a", "b"), PLAIN._replace(min_replicas=2))
        assert outcome == Waiting(Reason.TOO_FEW_REPLICAS, 1, 2)


class TestShrinkOnly:
    def test_keeps_newcomers_out(self) -> None:
        live = [asking("a", shrink_only=True), asking("b"), asking("n")]
        assert names(decide(live, quorum("a", "b", "c"), PLAIN)) == "ab"

    def test_those_kept_out_do_not_count_against_a_majority(self) -> None:
        live = [asking("a", shrink_only=True), asking("n"), asking("o"), asking("p")]
        assert names(decide(live, quorum("a", "b", "c", "d"), PLAIN)) == "a"

    def test_has_no_meaning_before_the_first_quorum(self) -> None:
        assert names(decide([asking("a", shrink_only=True), asking("b")], None, PLAIN)) == "ab"

    def test_nor_when_nobody_of_the_previous_one_is_left(self) -> None:
        live = [asking("a", number=2, shrink_only=True), asking("b", number=2, shrink_only=True)]
        assert names(decide(live, quorum("a", "b"), PLAIN)) == "ab"

    def test_a_missing_incumbent_is_still_waited_for(self) -> None:
        live = [asking("a", shrink_only=True), asking("b"), idle("c"), asking("n")]
        outcome = decide(live, quorum("a", "b", "c"), PLAIN)
        assert outcome == Waiting(Reason.PREVIOUS_MEMBERS_MISSING, 2, 3, ("c",))


class TestAfterARestart:
    SETTLING = PLAIN._replace(settling=True)
    CLAIMED = PLAIN._replace(claimed=True)

    def test_newcomers_wait_until_it_has_settled(self) -> None:
        assert decide([asking("n")], None, self.SETTLING) == Waiting(Reason.SETTLING, 0, 1)
        assert names(decide([asking("n")], None, PLAIN)) == "n"

    def test_incumbents_do_not(self) -> None:
        conditions = PLAIN._replace(settling=True, claimed=True)
        assert names(decide([asking("a"), asking("b")], quorum("a", "b"), conditions)) == "ab"
        live = [asking("a"), asking("b"), idle("c", suspect=True)]
        outcome = decide(live, quorum("a", "b", "c"), conditions)
        assert outcome == Waiting(Reason.PREVIOUS_MEMBERS_MISSING, 2, 3, ("c",))

    def test_without_any_claimed_member_only_after_the_join_timeout(self) -> None:
        live = [asking("n"), asking("o")]
        outcome = decide(live, quorum("a", "b"), self.CLAIMED)
        assert outcome == Waiting(Reason.PREVIOUS_MEMBERS_MISSING, 0, 1)
        assert outcome.numbers_hold
        assert names(decide(live, quorum("a", "b"), self.CLAIMED._replace(join_over=True))) == "no"


def test_a_wait_is_told_in_the_words_of_the_wire() -> None:
    waiting = Waiting(Reason.NO_MAJORITY, 1, 2, ("b",))
    assert waiting.message() == QuorumWaiting(Reason.NO_MAJORITY, 1, 2, ("b",))
    assert type(waiting.message()) is QuorumWaiting


@pytest.mark.parametrize("reason", Reason)
def test_the_numbers_hold_only_while_stragglers_are_awaited(reason: Reason) -> None:
    holds = reason in (Reason.PREVIOUS_MEMBERS_MISSING, Reason.MEMBERS_MISSING)
    assert Waiting(reason, 0, 1).numbers_hold is holds


NAMES = "abcdefg"
ABSENT = None


def variants(name: str) -> list[Standing | None]:
    """Whatever can stand behind a name."""
    found: list[Standing | None] = [ABSENT]
    for number, suspect, flag in product((1, 2), (False, True), (False, True)):
        found.append(asking(name, number, suspect=suspect, shrink_only=flag and number == 1))
        found.append(idle(name, number, suspect=suspect, counted=flag))
    return found


LIVE = st.tuples(*[st.sampled_from(variants(name)) for name in NAMES])
PREVIOUS = st.none() | st.sets(st.sampled_from(NAMES)).map(lambda chosen: quorum(*sorted(chosen)))
CONDITIONS = st.builds(Conditions, st.integers(1, 4), st.booleans(), st.booleans(), st.booleans())


@settings(derandomize=True, max_examples=500)
@given(LIVE, PREVIOUS, CONDITIONS)
def test_whatever_the_situation(
    standings: tuple[Standing | None, ...], previous: QuorumClaim | None, conditions: Conditions
) -> None:
    live = [standing for standing in standings if standing is not ABSENT]
    conditions = conditions._replace(claimed=conditions.claimed and previous is not None)
    outcome = decide(live, previous, conditions)
    was_in = set(previous.members) if previous else set()
    incumbents = {m.replica_id for m in live if (m.replica_id, m.incarnation) in was_in}
    waiting = {m.replica_id for m in live if m.request and not m.suspect}
    shrinking = any(m.request.shrink_only for m in live if m.request and not m.suspect)
    if incumbents and shrinking:
        live = [m for m in live if m.replica_id in incumbents]
        waiting &= incumbents
    counted = {m.replica_id for m in live if m.counted}
    numbers_hold = len(waiting) >= conditions.min_replicas and 2 * len(waiting & counted) > len(counted)

    if isinstance(outcome, Waiting):
        assert outcome.have < outcome.need
        assert set(outcome.missing) <= {m.replica_id for m in live} - waiting
        assert outcome.numbers_hold <= numbers_hold
        assert not (numbers_hold and incumbents and incumbents <= waiting), "incumbents are held up"
        assert not (numbers_hold and conditions.join_over and not conditions.settling)
        return
    formed = [p.replica_id for p in outcome.participants]
    assert formed == sorted(waiting), "every candidate, no one else, each once, in order"
    assert numbers_hold
    assert set(outcome.excluded) == incumbents - waiting
    left_behind = {m.replica_id for m in live} - waiting
    assert not left_behind or conditions.join_over or incumbents
    assert not outcome.excluded or conditions.join_over
    assert incumbents or not conditions.settling
    assert incumbents or not conditions.claimed or conditions.join_over
