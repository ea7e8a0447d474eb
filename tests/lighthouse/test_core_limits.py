"""Every table of the core has a limit, and reaching it harms nobody who is inside."""

from __future__ import annotations

import pytest

from procguard.lighthouse import admission, roster
from procguard.lighthouse.events import TopicHeld
from procguard.messages import (
    CauseKind,
    Incarnation,
    MemberState,
    QuorumClaim,
    QuorumId,
    Rejected,
    Rejection,
    Welcome,
)
from tests.lighthouse.story import EPOCH, Story


def test_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "JOBS_MAX", 2)
    monkeypatch.setattr(roster, "DEAD_KEPT_S", 5.0)
    story = Story()
    story.join("one:a", "two:a")
    refused = story.join("three:a")
    assert story.expect(refused, Rejected).reason is Rejection.FULL
    story.join("two:b")
    assert story.state("two:b") is MemberState.ALIVE
    story.kill("one:a")
    story.advance(6.0)
    story.rejoin(refused)
    story.expect(refused, Welcome)


def test_members_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MEMBERS_MAX", 3)
    story = Story()
    story.join("a", "b", "c")
    refused = story.join("d")
    assert story.expect(refused, Rejected).reason is Rejection.FULL
    story.kill("b")
    story.join("b", "other:d")
    assert [m.replica_id for m in story.job().members] == ["a", "b", "c"]
    story.ask("a", "b", "c")
    story.expect_quorum("a", "b", "c")


def test_members_that_are_only_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MEMBERS_MAX", 3)
    story = Story(restarted=True)
    a = story.new_person("a", incarnation=Incarnation(EPOCH - 1, 1))
    claimed = tuple((f"r{number:02d}", Incarnation(EPOCH - 1, 2)) for number in range(50))
    a.claimed = QuorumClaim(QuorumId(EPOCH - 1, 9), claimed)
    story.come_back(a)
    assert [m.replica_id for m in story.job().members] == ["a", "r00", "r01"]
    later = (("r00", Incarnation(EPOCH - 1, 3)), ("r01", Incarnation(EPOCH - 1, 2)))
    a.claimed = QuorumClaim(QuorumId(EPOCH - 1, 10), later)
    story.come_back(a)
    assert story.expect_notice("r00", CauseKind.SUPERSEDED).incarnation == claimed[0][1]
    assert story.member("r00").incarnation == later[0][1], "a name that is known has its place"


def test_the_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "DEAD_KEPT_MAX", 2)
    story = Story()
    story.join("a")
    for name in "bcdef":
        story.join(name)
    for name in "bfdec":
        story.kill(name)
        story.advance(0.1)
    story.advance(0.5)
    assert [m.replica_id for m in story.job().members] == ["a", "c", "e"], "the last to go are kept"
    assert len(story.core.roster.by_token) == 3
    assert len(story.core.roster._by_topic) == 3


def test_the_dead_are_forgotten_after_a_while_and_the_job_with_its_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(roster, "DEAD_KEPT_S", 10.0)
    story = Story()
    story.join("a", "b")
    story.kill("b")
    story.advance(9.0)
    assert story.state("b") is MemberState.FAILED
    story.advance(2.0)
    assert [m.replica_id for m in story.job().members] == ["a"]
    story.kill("a")
    story.advance(11.0)
    assert story.core.snapshot("", story.now).jobs == ()
    assert not story.core.roster.by_token
    beacons = len(story.beacons())
    story.advance(2.0)
    assert len(story.beacons()) == beacons


def test_topics_held_by_whomever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "TOPICS_MAX", 10)
    story = Story()
    story.join("a")
    for number in range(50):
        story.tell(TopicHeld(b"\0%d" % number))
    assert len(story.core.roster._held) == 10
    story.advance(2.0)
    assert story.state("a") is MemberState.ALIVE
    story.cut("a")
    story.advance(0.4)
    story.expect_notice("a", CauseKind.CONNECTION_LOST)


def test_listeners_whose_subscription_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "TOPICS_MAX", 10)
    story = Story()
    a = story.join("a")
    for number in range(50):
        a.topic = b"\0never %d" % number
        story.say(a.listener, a.hello(claim=True, topic=True))
    assert len(story.core.roster._welcomes) == 10
    assert len(story.core.roster._by_topic) == 1


def test_the_buried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "BURIED_MAX", 3)
    story = Story()
    dead = [story.new_person(f"r{number}") for number in range(5)]
    story.kill(*dead)
    answers = []
    for person in dead:
        person.inbox.clear()
        story.say(person.trainer, person.hello())
        answers.append(type(person.inbox[0]))
    assert answers == [Welcome, Welcome, Rejected, Rejected, Rejected]
