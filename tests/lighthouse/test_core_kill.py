"""An operator ends a replica's life, told to the core; and those who are no operators do not."""

from __future__ import annotations

import pytest

from procguard.lighthouse.events import Publish, Received, Send
from procguard.messages import (
    Cause,
    CauseKind,
    Incarnation,
    Kill,
    Killed,
    KillResult,
    MemberState,
    NoticeBatch,
    Rejoin,
)
from tests.lighthouse.person import JOB
from tests.lighthouse.story import Story

PEER = b"somebody at a keyboard"
DONE, NOT_ALLOWED, UNKNOWN = KillResult


@pytest.fixture
def story() -> Story:
    story = Story()
    story.join("a", "b")
    return story


def life(story: Story, name: str) -> Incarnation:
    incarnation = story.person(name).incarnation
    assert incarnation is not None
    return incarnation


def ask(story: Story, kill: Kill, operator: str = "ann") -> KillResult:
    """What is answered, once time has passed."""
    story.effects.clear()
    with story.one_batch():
        story.tell(Received(PEER, kill, operator))
    answers = [e.message for e in story.effects if isinstance(e, Send) and e.peers == (PEER,)]
    (answer,) = [message for message in answers if isinstance(message, Killed)]
    assert answer[:2] == kill[1:]
    return answer.result


def test_the_group_is_told_and_the_replica_has_to_join_again(story: Story) -> None:
    first = life(story, "a")
    assert ask(story, Kill(JOB, "a", first)) is DONE
    assert story.expect_notice("a", CauseKind.OPERATOR).cause == Cause(CauseKind.OPERATOR, text="ann")
    assert story.state("a") is MemberState.FAILED
    story.beat("a")
    assert str(story.expect("a", Rejoin).cause) == "ended by an operator (ann)"
    story.rejoin("a")
    assert life(story, "a") > first
    assert story.state("a") is MemberState.ALIVE
    assert story.state("b") is MemberState.ALIVE


def test_the_listeners_hear_of_it_before_the_operator(story: Story) -> None:
    assert ask(story, Kill(JOB, "a", life(story, "a"))) is DONE
    kinds = [type(e.message) for e in story.effects if isinstance(e, Publish | Send)]
    assert kinds == [NoticeBatch, Killed]


def test_said_twice_it_does_not_end_the_life_after(story: Story) -> None:
    kill = Kill(JOB, "a", life(story, "a"))
    assert ask(story, kill) is DONE
    story.expect_notice("a", CauseKind.OPERATOR)
    assert ask(story, kill) is DONE
    story.rejoin("a")
    assert ask(story, kill) is DONE
    assert story.state("a") is MemberState.ALIVE
    story.expect_no_notice()


def test_a_suspect_can_be_ended_too(story: Story) -> None:
    story.cut("a")
    assert story.state("a") is MemberState.SUSPECT
    assert ask(story, Kill(JOB, "a", life(story, "a"))) is DONE
    story.expect_notice("a", CauseKind.OPERATOR)
    story.advance(1.0)
    story.expect_no_notice()


@pytest.mark.parametrize(("job_id", "name", "later"), [("nope", "a", 0), (JOB, "zz", 0), (JOB, "a", 1)])
def test_one_that_is_not_known(story: Story, job_id: str, name: str, later: int) -> None:
    epoch, number = life(story, "a")
    number += later * 100
    assert ask(story, Kill(job_id, name, Incarnation(epoch, number))) is UNKNOWN
    story.expect_no_notice()


def test_without_an_operators_key_it_is_refused_and_counted(story: Story) -> None:
    for _ in range(2):
        assert ask(story, Kill(JOB, "a", life(story, "a")), operator="") is NOT_ALLOWED
    assert story.state("a") is MemberState.ALIVE
    story.expect_no_notice()
    assert story.count("kills asked for without an operator's key") == 2


def test_the_log_names_the_operator(story: Story) -> None:
    ask(story, Kill(JOB, "a", life(story, "a")))
    lines = [e.text for e in story.effects if hasattr(e, "text")]
    assert [line for line in lines if "Replica a failed: ended by an operator (ann) (pid " in line]


def test_no_member_speaks_in_an_operators_name(story: Story) -> None:
    story.kill("a", cause=Cause(CauseKind.OPERATOR, text="ann"))
    assert story.state("a") is MemberState.ALIVE
    story.expect_no_notice()
    assert story.count("obituaries in an operator's name") == 1
