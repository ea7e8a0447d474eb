"""What a run is said to mean."""

from __future__ import annotations

import json
from typing import Any

import pytest

from procguard.demo.chronicle import Chronicle
from procguard.demo.faults import Fault, Kind
from procguard.demo.journal import Ended, Told
from procguard.demo.report import (
    Result,
    as_json,
    broken_promises,
    closing_sentence,
    comparison,
    headings,
    outcome,
    rows,
    timeline,
)
from procguard.demo.story import story
from tests.demo.fake_job import FakeJob

FAULTS = (Fault(Kind.KILL, "2", 0, 60, 0.5), Fault(Kind.STOP, "0", 0, 60, 0.5))


def result(*, proactive: bool = True, **changes: Any) -> Result:
    """Of a run on paper in which all went well."""
    chronicle = Chronicle("012", proactive=proactive)
    job = FakeJob(chronicle, notices=proactive)
    for act in story(FAULTS, chronicle):
        job.perform(act)
    return Result(7, proactive, chronicle, 0, 12.5, "")._replace(**changes)


def test_a_good_run_breaks_no_promise() -> None:
    assert broken_promises(result()) == []
    assert broken_promises(result(proactive=False)) == []


def test_of_groups_each_rank_must_end_with_the_weights_of_its_like() -> None:
    chronicle = Chronicle("012", proactive=True, ranks=2)
    job = FakeJob(chronicle)
    for act in story([Fault(Kind.KILL, "2", 1, 60, 0.5)], chronicle):
        job.perform(act)
    good = Result(7, True, chronicle, 0, 12.5, "")
    assert broken_promises(good) == []
    assert good.weights == {"same0 same1"}
    assert rows(good)[0][0] == "2/1"
    chronicle.ends["1/1"] = chronicle.ends["1/1"]._replace(digest="other")
    assert not good.weights_equal
    del chronicle.ends["1/1"]
    assert not good.weights_equal


def test_its_facts_as_json() -> None:
    facts = json.loads(json.dumps(as_json(result())))
    kill, stop = facts.pop("events")
    assert facts == {
        "weights_equal": True,
        "accuracy": 0.95,
        "steps": 300,
        "steps_lost": 2,
        "false_notices": 0,
        "survivors_restarted": 0,
        "proactive": True,
        "seed": 7,
        "duration_s": 12.5,
        "broken_promises": [],
    }
    assert (kill["kind"], kill["replica_id"], kill["survivors"]) == ("kill", "2", ["0", "1"])
    assert kill["told_ms"] == pytest.approx([1, 1])
    assert kill["next_step_ms"] == pytest.approx(21)
    assert kill["healed_ms"] > kill["returned_ms"] > kill["next_step_ms"]
    assert (stop["kind"], stop["told_ms"], stop["steps_lost"]) == ("stop", pytest.approx([1000, 1000]), 1)
    assert stop["healed_ms"] == pytest.approx(20)


def test_its_table() -> None:
    good = result()
    assert rows(good) == [
        (
            "2",
            "kill -9\nin step 62",
            "replica 0: 1.0 ms\nreplica 1: 1.0 ms",
            "21.0 ms",
            "81.0 ms after\nthe kill, in a new process",
            "1",
        ),
        (
            "0",
            "SIGSTOP\nin step 126",
            "replica 1: 1.00 s\nreplica 2: 1.00 s",
            "1.02 s",
            "20.0 ms after\nSIGCONT",
            "1",
        ),
    ]
    assert len(headings(good)) == len(rows(good)[0])


def test_its_words() -> None:
    good = result()
    assert "test accuracy 95.0%, weights equal on all 3 replicas, 2 steps lost" in outcome(good)
    assert closing_sentence(good) == (
        "Replica 2 was killed and the others knew after 1.0 ms; replica 0 was stopped and the others knew "
        "after 1.00 s. The job went on each time: no survivor was restarted, and all 3 ended with the same "
        "weights and 95.0% accuracy."
    )
    assert comparison(good, result(proactive=False)) == (
        "Without proactive recovery the next step took 21.0 ms instead of 21.0 ms after the kill of replica "
        "2 and 1.02 s instead of 1.02 s after the stop of replica 0."
    )


def test_its_timeline() -> None:
    lines = timeline(result().chronicle.milestones, 100.0)
    assert [line.partition(" s  ")[2] for line in lines] == [
        "all replicas train",
        "replica 2: kill -9 in step 62",
        "  the others know: replica 0: 1.0 ms, replica 1: 1.0 ms",
        "  the next step, without it, is done after 21.0 ms",
        "replica 2 is started anew",
        "  it has healed 81.0 ms after the kill, in a new process",
        "replica 0: SIGSTOP in step 126",
        "  the others know: replica 1: 1.00 s, replica 2: 1.00 s",
        "  the next step, without it, is done after 1.02 s",
        "replica 0 is continued (SIGCONT)",
        "  it has healed 20.0 ms after SIGCONT",
        "all replicas have ended",
    ]
    assert lines[0].startswith("  0.020 s")


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"trouble": "gave up"}, "gave up"),
        ({"survivors_restarted": 1}, "1 survivors did not live to the end"),
    ],
)
def test_a_run_that_broke_a_promise(changes: dict[str, Any], broken: str) -> None:
    assert broken_promises(result(**changes)) == [broken]


def test_other_weights() -> None:
    bad = result()
    bad.chronicle.hear(Ended("1", 200.0, 300, 0.95, "other"))
    assert broken_promises(bad) == ["the final weights differ: other, same"]
    assert not bad.weights_equal


def test_a_poor_model() -> None:
    bad = result()
    bad.chronicle.hear(Ended("1", 200.0, 300, 0.5, "same"))
    assert broken_promises(bad) == ["the accuracy is 0.500, less than 0.9"]


def test_a_false_notice() -> None:
    bad = result()
    bad.chronicle.hear(Told("1", 200.0, "2", False))
    assert broken_promises(bad) == ["1 notices were of replicas to which nothing was done"]


def test_a_run_that_came_to_a_halt_still_says_what_it_knows() -> None:
    chronicle = Chronicle("012", proactive=True)
    job = FakeJob(chronicle)
    for _ in range(10):
        job.train()
    chronicle.strike(FAULTS[0], job.now)
    chronicle.hear(Told("0", job.now + 0.001, "2", False))
    halted = Result(7, True, chronicle, 0, 60.0, "gave up")
    assert broken_promises(halted) == [
        "gave up",
        "replica 1 was not told of replica 2",
        "replica 2 did not heal",
    ]
    (event,) = as_json(halted)["events"]
    assert (event["told_ms"], event["next_step_ms"], event["healed_ms"]) == ([1.0], None, None)
    assert rows(halted)[0][2:5] == (
        "replica 0: 1.0 ms\nreplica 1: never",
        "never",
        "never after\nthe kill, in a new process",
    )
