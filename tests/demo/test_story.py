"""The script, played by replicas that exist only on paper."""

from __future__ import annotations

from random import Random

import pytest

from procguard.demo.chronicle import Chronicle
from procguard.demo.faults import Fault, Kind, draw
from procguard.demo.story import ALONE_STEPS, END_EVERY_STEPS, STEPS_MIN, Until, story
from tests.demo.fake_job import FakeJob

REPLICAS = ["0", "1", "2", "3"]


def played(*faults: Fault, proactive: bool = True) -> FakeJob:
    job = FakeJob(Chronicle(REPLICAS, proactive=proactive), notices=proactive)
    for act in story(faults, job.chronicle):
        job.perform(act)
    return job


@pytest.mark.parametrize("kills", [0, 1, 3])
@pytest.mark.parametrize("proactive", [True, False])
def test_every_story_comes_to_its_end(kills: int, proactive: bool) -> None:
    job = played(*draw(Random(kills), REPLICAS, kills), proactive=proactive)
    assert job.acts == ["Strike", "BringBack"] * (kills + 1) + ["Finish"]
    assert set(job.chronicle.ends) == set(REPLICAS)
    assert job.chronicle.step >= STEPS_MIN
    assert job.chronicle.false_notices == 0
    for incident in job.chronicle.incidents:
        assert incident.healed_at is not None
        assert len(incident.told) == 3


@pytest.mark.parametrize("kills", [1, 2, 3])
def test_a_story_of_groups_of_ranks(kills: int) -> None:
    chronicle = Chronicle(REPLICAS, proactive=True, ranks=2)
    job = FakeJob(chronicle)
    faults = draw(Random(kills), REPLICAS, kills, ranks=2)
    for act in story(faults, chronicle):
        job.perform(act)
    assert job.acts == ["Strike", "BringBack"] * kills + ["Finish"]
    assert set(chronicle.ends) == {f"{replica_id}/{rank}" for replica_id in REPLICAS for rank in (0, 1)}
    for fault, incident in zip(faults, chronicle.incidents, strict=True):
        assert set(incident.victims) == {f"{fault.replica_id}/0", f"{fault.replica_id}/1"} == incident.healed
        assert set(incident.told) == set(chronicle.names) - set(incident.victims)
    assert job.step % END_EVERY_STEPS < END_EVERY_STEPS // 4, "all ranks hear before the same round step"


def test_a_fault_comes_after_its_undisturbed_steps() -> None:
    job = played(Fault(Kind.KILL, "1", 0, 80, 0.0), Fault(Kind.STOP, "2", 0, 100, 0.0))
    first, second = job.chronicle.incidents
    assert first.step == 1 + 80 + 1
    assert second.step > first.step + 100


def test_the_victim_comes_back_when_the_others_have_gone_on() -> None:
    job = played(Fault(Kind.STOP, "0", 0, 60, 0.0))
    (incident,) = job.chronicle.incidents
    assert set(incident.gone_on) == {"1", "2", "3"}
    assert incident.return_step - incident.step + 1 == ALONE_STEPS[Kind.STOP]


def test_the_story_waits_until_the_last_survivor_is_told() -> None:
    chronicle = Chronicle(REPLICAS, proactive=True)
    job = FakeJob(chronicle, notices=False)
    with pytest.raises(AssertionError, match="the others are told of 3"):
        for act in story([Fault(Kind.KILL, "3", 0, 60, 0.0)], chronicle):
            job.perform(act)
    assert job.acts == ["Strike"]


def test_each_wait_says_what_for() -> None:
    chronicle = Chronicle(REPLICAS, proactive=True)
    job = FakeJob(chronicle)
    said = []
    for act in story([Fault(Kind.KILL, "3", 0, 60, 0.0)], chronicle):
        said += [act.what] if isinstance(act, Until) else []
        job.perform(act)
    assert said == [
        "all replicas train together",
        "all replicas reach step 61",
        "the others are told of 3 and go on without it",
        "the new replica 3 has healed",
        f"all replicas reach step {STEPS_MIN}",
        "the last steps begin",
        "all replicas have ended",
    ]
