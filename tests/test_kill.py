"""``procguard kill``: which replica is meant, and what is said when none is; see also test_locked_job."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from procguard.env import Address
from procguard.errors import LighthouseUnreachable, UsageError
from procguard.kill import choose, end
from procguard.main import main
from procguard.messages import Incarnation, Kill, MemberState, Snapshot
from procguard.status import Target
from tests.keys import Keys
from tests.lighthouse.story import KILLED, SETTINGS, Story


def snapshot(*names: str, dead: str = "") -> Snapshot:
    story = Story(settings=SETTINGS)
    story.join(*names)
    if dead:
        story.kill(dead, cause=KILLED)
    return story.core.snapshot("", story.now)


def test_a_name_is_enough_where_one_job_has_it() -> None:
    job_id, member = choose(snapshot("a", "b", "other:c"), "c", "")
    assert (job_id, member.replica_id, member.state) == ("other", "c", MemberState.ALIVE)


def test_where_several_jobs_have_it_one_must_be_named() -> None:
    both = snapshot("a", "other:a")
    with pytest.raises(
        UsageError, match=r"replica a is in several jobs \(other, train\): name one with --job"
    ):
        choose(both, "a", "")
    assert choose(both, "a", "other")[0] == "other"


def test_the_living_one_is_meant() -> None:
    assert choose(snapshot("a", "other:a", dead="a"), "a", "")[0] == "other"


@pytest.mark.parametrize(
    ("name", "job_id", "said"),
    [
        ("zz", "", r"no replica zz in any job; there is b \(job other\)"),
        ("b", "train", "no replica b in job train; there is nobody"),
        ("a", "", "replica a of job train has failed already: killed by SIGKILL"),
    ],
)
def test_one_that_cannot_be_meant(name: str, job_id: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        choose(snapshot("a", "other:b", dead="a"), name, job_id)


def test_without_an_answer_the_outcome_is_not_known(tmp_path: Path) -> None:
    kill = Kill("train", "a", Incarnation(1, 1))
    with pytest.raises(LighthouseUnreachable, match="Whether the replica was ended is not known"):
        end(Target(Address("127.0.0.1", 1), "said here", Keys(tmp_path / "keys").operator), kill, 0.05)


def test_a_key_is_asked_for_before_anything_else() -> None:
    shown = CliRunner().invoke(main, ["kill", "a"])
    assert shown.exit_code == 2
    assert "needs an operator's key: make one with `procguard keys add DIR NAME --operator`" in shown.stderr
