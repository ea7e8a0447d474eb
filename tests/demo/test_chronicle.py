"""What is concluded from journals, also from entries that come late or in between."""

from __future__ import annotations

import pytest

from procguard.demo.chronicle import Chronicle, Incident, Stage
from procguard.demo.faults import Fault, Kind
from procguard.demo.journal import Ended, Stepped, Told

KILL = Fault(Kind.KILL, "2", 0, 0, 0.5)
STOP = Fault(Kind.STOP, "2", 0, 0, 0.5)


def trained(*, proactive: bool = True, step: int = 10) -> Chronicle:
    """Three replicas that have committed a step together, in quorum 5."""
    chronicle = Chronicle("012", proactive=proactive)
    for replica_id in "012":
        chronicle.hear(Stepped(replica_id, 1.0, step, True, 5))
    return chronicle


def struck(fault: Fault = KILL, *, proactive: bool = True) -> tuple[Chronicle, Incident]:
    chronicle = trained(proactive=proactive)
    chronicle.strike(fault, 2.0)
    return chronicle, chronicle.incidents[0]


def test_it_begins_when_all_train_in_one_quorum() -> None:
    chronicle = Chronicle("01", proactive=True)
    chronicle.hear(Stepped("0", 1.0, 3, True, 4))
    chronicle.hear(Stepped("1", 1.1, 4, True, 5))
    assert not chronicle.training
    chronicle.hear(Stepped("0", 1.2, 4, True, 5))
    assert chronicle.training
    assert chronicle.milestones == [(1.2, Stage.TRAINING, None)]


def test_who_was_told_when() -> None:
    chronicle, incident = struck()
    chronicle.hear(Told("1", 2.002, "2", False))
    assert not any(milestone.stage is Stage.TOLD for milestone in chronicle.milestones)
    chronicle.hear(Told("0", 2.003, "2", False))
    assert incident.told_ms == pytest.approx([3, 2])
    assert chronicle.milestones[-1] == (2.003, Stage.TOLD, incident)
    assert chronicle.false_notices == 0


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(Told("0", 2.1, "1", False), id="of one that lives"),
        pytest.param(Told("0", 1.9, "2", False), id="before it happened"),
        pytest.param(Told("2", 2.1, "2", False), id="by the newcomer, of the one before it"),
    ],
)
def test_a_false_notice(told: Told) -> None:
    chronicle, incident = struck()
    chronicle.hear(told)
    assert chronicle.false_notices == 1
    assert not incident.told


def test_a_second_notice_of_the_same_death_is_one_too_many() -> None:
    chronicle, _ = struck()
    chronicle.hear(Told("0", 2.1, "2", False))
    chronicle.hear(Told("0", 2.2, "2", False))
    assert chronicle.false_notices == 1


def test_a_departure_is_no_failure() -> None:
    chronicle, incident = struck()
    chronicle.hear(Told("0", 2.1, "2", True))
    assert chronicle.false_notices == 0
    assert not incident.told


def test_the_next_step_is_the_first_without_the_victim() -> None:
    chronicle, incident = struck()
    chronicle.hear(Stepped("0", 2.001, 11, True, 5))  # its collective was complete before the kill
    chronicle.hear(Stepped("1", 2.002, 10, False, 5))
    assert not incident.resumed
    chronicle.hear(Stepped("0", 2.020, 12, True, 6))
    assert incident.next_step_ms is None
    chronicle.hear(Stepped("1", 2.021, 12, True, 6))
    assert incident.next_step_ms == pytest.approx(21)
    assert incident.steps_lost == chronicle.steps_lost == 1


def test_entries_from_before_the_fault_that_are_read_after_it() -> None:
    chronicle, incident = struck()
    for replica_id in "012":
        chronicle.hear(Stepped(replica_id, 1.9, 11, True, 6))
    assert (incident.step, incident.quorum) == (12, 6)
    assert not incident.resumed
    chronicle.hear(Stepped("0", 2.1, 12, True, 6))
    assert not incident.resumed


def test_without_notices_a_survivor_knows_from_its_own_error() -> None:
    chronicle, incident = struck(proactive=False)
    chronicle.hear(Stepped("0", 7.0, 10, False, 5))
    chronicle.hear(Stepped("0", 7.1, 11, True, 6))
    chronicle.hear(Stepped("1", 7.2, 11, True, 6))  # its step was complete: it learns from the new quorum
    assert incident.told_ms == pytest.approx([5000, 5200])


def test_with_notices_an_error_is_not_yet_being_told() -> None:
    chronicle, incident = struck()
    chronicle.hear(Stepped("0", 2.1, 10, False, 5))
    assert not incident.told


def test_a_new_process_has_healed_with_its_first_step_among_the_others() -> None:
    chronicle, incident = struck()
    for replica_id in "01":
        chronicle.hear(Stepped(replica_id, 2.5, 20, True, 6))
    chronicle.bring_back(3.0)
    chronicle.hear(Stepped("2", 4.0, 0, False, 0))
    assert incident.healed_at is None
    chronicle.hear(Stepped("2", 4.1, 31, True, 7))
    assert incident.healed_ms == pytest.approx(2100)  # since the kill
    assert chronicle.milestones[-1].stage is Stage.HEALED
    assert chronicle.steps_lost == 0


def test_one_that_continues_has_not_healed_by_ending_its_old_step() -> None:
    chronicle, incident = struck(STOP)
    for replica_id in "01":
        chronicle.hear(Stepped(replica_id, 4.0, 20, True, 6))
    chronicle.bring_back(5.0)
    chronicle.hear(Stepped("2", 5.001, 11, True, 5))
    assert incident.healed_at is None
    chronicle.hear(Stepped("2", 5.040, 22, True, 7))
    assert incident.healed_ms == pytest.approx(40)  # since the SIGCONT


def test_progress_is_that_of_those_who_are_there() -> None:
    chronicle, _ = struck()
    for replica_id in "01":
        chronicle.hear(Stepped(replica_id, 2.5, 20, True, 6))
    assert chronicle.step == 20
    chronicle.bring_back(3.0)
    chronicle.hear(Stepped("2", 4.1, 21, True, 7))
    assert chronicle.step == 20


def test_a_step_lost_for_no_reason_is_counted_once() -> None:
    chronicle = trained()
    for replica_id in "012":
        chronicle.hear(Stepped(replica_id, 1.1, 10, False, 5))
    assert chronicle.steps_lost == 1


def test_what_fails_before_all_train_is_not_counted() -> None:
    chronicle = Chronicle("012", proactive=True)
    chronicle.hear(Stepped("0", 1.1, 0, False, 0))
    assert chronicle.steps_lost == 0


def test_it_ends_when_all_have_ended() -> None:
    chronicle = trained()
    for replica_id in "012":
        assert chronicle.milestones[-1].stage is not Stage.ENDED
        chronicle.hear(Ended(replica_id, 9.0, 10, 0.9, "ab"))
    assert chronicle.milestones[-1] == (9.0, Stage.ENDED, None)
