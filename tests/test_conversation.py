"""What lighthouse and trainers say to each other, and what comes of it when either is unlucky."""

from __future__ import annotations

import random

import pytest

from procguard.client.link_words import LastWords
from procguard.client.recovery_plan import recovery_plan
from procguard.messages import (
    Cause,
    CauseKind,
    Incarnation,
    MemberState,
    Notice,
    NoticeBatch,
    Phase,
    QuorumFormed,
    Reason,
    Rejection,
)
from tests.client.fakes import EPOCH, KILLED, SETTINGS
from tests.stage import Stage, Trainer

NAMES = ("a", "b", "c")


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def trio() -> Stage:
    """Three who have begun to train together."""
    stage = Stage()
    stage.add(*NAMES)
    stage.quorum(*NAMES)
    return stage


def only_told(stage: Stage, who: str, *survivors: str) -> Notice:
    """Each survivor was told of this one, once, and of nothing else."""
    told = [stage[name].told for name in survivors]
    assert told == [told[0]] * len(told)
    (notice,) = told[0]
    assert notice.replica_id == who
    return notice


# --- as it should be ----------------------------------------------------------------------------------


def test_they_join_agree_on_a_quorum_and_beat(trio: Stage) -> None:
    assert [trio.member(name).state for name in NAMES] == [MemberState.ALIVE] * 3
    assert all(trainer.listener and trainer.listener.is_ready for trainer in trio.trainers.values())
    trio.advance(30.0)
    trio.nobody_was_told()
    assert max(trio.member(name).ranks[0].beat_age_s for name in NAMES) <= 0.1
    assert all(trainer.wire.reconnects == 0 for trainer in trio.trainers.values())


def test_the_same_quorum_serves_step_after_step(trio: Stage) -> None:
    first = trio["a"].installed
    for _ in range(5):
        for name in NAMES:
            trio[name].commit()
        formed = trio.quorum(*NAMES)
        assert first is not None
        assert formed.quorum_id == first.quorum_id
    assert {p.step for p in formed.participants} == {5}
    trio.advance(0.1)
    assert trio.member("a").step == 5


def test_one_that_only_starts_holds_nobody_up(trio: Stage) -> None:
    trio.add("d")
    trio.quorum(*NAMES)
    trio["d"].ask()
    trio.advance(0.1)
    assert trio["d"].installed is None, "its turn comes with the others' next step"
    trio.quorum(*NAMES, among=(*NAMES, "d"))


def test_one_that_asks_too_early_waits_for_enough() -> None:
    stage = Stage(min_replicas=2)
    stage.add("a")
    stage["a"].ask()
    stage.advance(5.0)
    assert stage["a"].requests.waiting is not None
    assert stage["a"].requests.waiting.reason is Reason.TOO_FEW_REPLICAS
    stage.add("b")
    stage["b"].ask()
    stage.await_quorum("a", "b")


def test_one_that_does_not_come_is_left_out_told_and_let_in_again(trio: Stage) -> None:
    trio["a"].ask()
    trio["b"].ask()
    trio.advance(SETTINGS.join_timeout_s - 1)
    assert trio["c"].pg.aborted == []
    trio.await_quorum("a", "b")
    assert len(trio["c"].pg.aborted) == 1, "its collective ends: nobody takes part in it any more"
    trio["c"].ask()
    trio.settle()
    trio.quorum("a", "b", among=NAMES)
    trio.nobody_was_told()


def test_without_proactive_recovery_the_connection_stays_though_no_notice_is_heard(stage: Stage) -> None:
    stage.add("a", "b", proactive=False)
    stage.quorum("a", "b")
    stage["b"].die()
    stage.advance(30.0)
    assert stage.member("b").state is MemberState.FAILED
    assert stage["a"].told == []
    assert stage["a"].listener is not None
    assert stage["a"].listener.wire.reconnects == 0
    stage.quorum("a")


# --- the end of a trainer -----------------------------------------------------------------------------


def test_a_death_is_told_at_once_and_the_others_go_on(trio: Stage) -> None:
    before = trio["a"].installed
    assert before is not None
    trio["c"].die()
    trio.settle()
    assert only_told(trio, "c", "a", "b").cause == KILLED
    assert trio["a"].pg.aborted == trio["b"].pg.aborted == [before.quorum_id.packed]
    del trio.trainers["c"]
    assert trio.quorum("a", "b").quorum_id > before.quorum_id


def test_last_words_are_told_with_the_death(trio: Stage) -> None:
    listener = trio["c"].listener
    assert listener is not None
    listener.tell(LastWords("ValueError: no such shape"))
    trio["c"].die(Cause(CauseKind.PROCESS_EXIT, exit_code=1))
    trio.settle()
    assert str(only_told(trio, "c", "a", "b").cause) == "exited with code 1 (ValueError: no such shape)"


def test_a_host_that_vanishes_is_told_after_the_grace(trio: Stage) -> None:
    trio["c"].vanish()
    trio.advance(0.29)
    assert trio["a"].told == []
    trio.advance(0.1)
    assert only_told(trio, "c", "a", "b").cause.kind is CauseKind.CONNECTION_LOST


def test_a_line_that_dies_without_a_word_is_told_after_the_heartbeat_timeout(trio: Stage) -> None:
    listener = trio["c"].listener
    assert listener is not None
    listener.wire.is_dead = True
    trio.advance(1.2)
    assert only_told(trio, "c", "a", "b").cause.kind is CauseKind.HEARTBEAT_TIMEOUT


def test_a_death_while_the_others_already_wait_for_it(trio: Stage) -> None:
    trio["a"].ask()
    trio["b"].ask()
    trio.advance(1.0)
    trio["c"].die()
    trio.settle()
    trio.await_quorum("a", "b")


def test_the_answer_and_the_notice_may_come_in_either_order(trio: Stage) -> None:
    """The quorum with c is on its way to a when c dies, and the notice is there first."""
    trio["a"].wire.lost = (QuorumFormed,)
    for name in NAMES:
        trio[name].ask()
    trio.settle()
    trio["c"].die()
    trio.settle()
    trio["a"].wire.lost = ()
    del trio.trainers["c"]
    assert trio["a"].told == trio["b"].told != []
    trio["b"].ask()
    trio.await_quorum("a", "b")
    assert trio["a"].pg.aborted == [], "it was never installed"


def test_its_replacement_takes_the_name_and_heals(trio: Stage) -> None:
    trio["c"].die()
    trio.settle()
    trio.add("c")
    trio.quorum(*NAMES)
    assert trio["c"].incarnation > trio["a"].incarnation
    trio.advance(5.0)
    only_told(trio, "c", "a", "b")


def test_a_name_in_use_is_had_when_its_holder_has_gone(trio: Stage) -> None:
    holder = trio["c"]
    twin = Trainer(trio, "c")
    trio.trainers["twin"] = twin
    twin.join()
    trio.advance(1.0)
    assert twin.requests.refusal is not None
    assert twin.requests.refusal.reason is Rejection.ID_IN_USE
    holder.die()
    trio.advance(1.0)
    assert twin.requests.done
    assert twin.incarnation > holder.incarnation


def test_one_that_leaves_is_told_as_gone_and_waited_for_by_nobody(trio: Stage) -> None:
    for name in NAMES:
        trio[name].commit()
    trio["c"].leave()
    trio.settle()
    notice = only_told(trio, "c", "a", "b")
    assert notice.left
    assert notice.step == 1
    trio.quorum("a", "b")
    trio.advance(5.0)
    assert trio["a"].pg.aborted == [], "the next quorum was in use before the grace was over"


def test_one_that_exits_with_0_has_left_too(trio: Stage) -> None:
    trio["c"].die(Cause(CauseKind.PROCESS_EXIT, exit_code=0))
    trio.settle()
    assert only_told(trio, "c", "a", "b").left


def test_a_departure_a_step_ahead_ends_nothing(trio: Stage) -> None:
    trio["c"].commit()
    trio["c"].leave()
    trio.advance(1.0)
    assert only_told(trio, "c", "a", "b").step == 1
    assert trio["a"].pg.aborted == []


def test_a_departure_in_mid_step_ends_the_step_after_its_grace(trio: Stage) -> None:
    trio["c"].leave()
    trio.advance(0.29)
    assert trio["a"].pg.aborted == []
    trio.advance(0.1)
    assert len(trio["a"].pg.aborted) == 1


# --- stopped, and continued ---------------------------------------------------------------------------


def test_a_stopped_trainer_is_given_up_and_joins_again_when_it_goes_on(trio: Stage) -> None:
    first = trio["c"].incarnation
    trio["c"].stop()
    trio.advance(1.3)
    assert only_told(trio, "c", "a", "b").cause.kind is CauseKind.STOPPED
    assert len(trio["c"].pg.aborted) == 1, "its own collective is ended for it"
    trio.quorum("a", "b")
    trio["c"].go_on()
    trio.advance(1.0)
    assert trio.member("c").state is MemberState.FAILED, "a listener does not revive its trainer"
    trio["c"].ask()
    trio.settle()
    trio.quorum("a", "b", among=NAMES)
    assert trio["c"].incarnation > first
    assert trio["c"].told == []
    trio.advance(5.0)
    trio.quorum(*NAMES)


def test_one_that_is_stopped_for_a_moment_is_not_given_up(trio: Stage) -> None:
    trio["c"].stop()
    trio.advance(0.8)
    trio["c"].go_on()
    trio.advance(5.0)
    trio.nobody_was_told()
    trio.quorum(*NAMES)


def test_one_that_was_given_up_does_not_pass_as_alive_with_a_lighthouse_that_forgot(trio: Stage) -> None:
    """It would be a member that nobody beats for: its listener has fallen silent."""
    first = trio["c"].incarnation
    trio["c"].stop()
    trio.advance(1.3)
    trio.quorum("a", "b")
    trio.restart_lighthouse()
    trio.advance(0.5)
    trio["c"].go_on()
    trio["c"].ask()
    trio.settle()
    trio.quorum("a", "b", among=NAMES)
    assert trio["c"].incarnation > first
    trio.advance(5.0)
    assert trio.member("c").state is MemberState.ALIVE


# --- without progress ---------------------------------------------------------------------------------

BOUND_S = 3.0


def bounded(*names: str) -> Stage:
    """These train together, and have declared how long they compute at most."""
    stage = Stage()
    stage.add(*names, progress_timeout_s=BOUND_S)
    stage.quorum(*names)
    for name in names:
        stage[name].does(Phase.COMPUTE)
    stage.advance(0.1)
    return stage


@pytest.mark.parametrize("holds_gil", [False, True], ids=["spins", "holds the GIL"])
@pytest.mark.parametrize("names", [("a", "b"), NAMES], ids=["of two", "of three"])
def test_a_wedged_trainer_is_given_up_the_others_go_on_and_it_may_come_back(
    names: tuple[str, ...], holds_gil: bool
) -> None:
    stage = bounded(*names)
    *survivors, victim = names
    wedged = stage[victim]
    first = wedged.incarnation
    wedged.is_running = not holds_gil
    for name in survivors:
        stage[name].does(Phase.COLLECTIVE)
    stage.advance(BOUND_S - 0.2)
    stage.nobody_was_told()
    stage.advance(0.4)
    cause = only_told(stage, victim, *survivors).cause
    assert (cause.kind, cause.text) == (CauseKind.STALLED, "none for 3 s in compute")
    assert [len(stage[name].pg.aborted) for name in names] == [1] * len(names), "its own too"
    stage.quorum(*survivors)
    for _ in range(3):
        for name in survivors:
            stage[name].does(Phase.COMPUTE)
            stage[name].commit()
        stage.advance(BOUND_S - 0.5)
        stage.quorum(*survivors)
    assert stage.member(victim).state is MemberState.FAILED, "its listener does not revive it"

    wedged.is_running = True
    wedged.does(Phase.COMPUTE)
    wedged.ask()
    stage.settle()
    formed = stage.quorum(*survivors, among=names)
    assert wedged.incarnation > first
    assert recovery_plan(formed, victim, 0, init_sync=True).heals
    for name in names:
        stage[name].does(Phase.COMPUTE)
    stage.advance(BOUND_S - 0.2)
    only_told(stage, victim, *survivors)
    assert wedged.told == []


def test_who_waits_is_not_blamed_however_long() -> None:
    stage = bounded(*NAMES)
    stage.add("d", progress_timeout_s=BOUND_S)
    for name, phase in zip(NAMES, (Phase.COLLECTIVE, Phase.HEAL, Phase.PAUSED), strict=True):
        stage[name].does(phase)
    stage["d"].does(Phase.QUORUM)
    stage["d"].ask()
    stage.advance(SETTINGS.join_timeout_s - 5)
    stage.nobody_was_told()
    stage["c"].does(Phase.COMPUTE)
    stage.advance(BOUND_S + 0.2)
    only_told(stage, "c", "a", "b", "d")


def test_signs_of_progress_keep_a_long_step_alive() -> None:
    stage = bounded("a", "b")
    stage["a"].does(Phase.COLLECTIVE)
    for _ in range(20):
        stage.advance(BOUND_S - 0.2)
        stage["b"].does(Phase.COMPUTE)
    stage.nobody_was_told()


def test_a_restarted_lighthouse_gives_a_wedged_trainer_its_time_again_and_no_more() -> None:
    stage = bounded(*NAMES)
    stage["a"].does(Phase.COLLECTIVE)
    stage["b"].does(Phase.COLLECTIVE)
    stage.advance(BOUND_S - 0.5)
    stage.restart_lighthouse()
    stage.advance(BOUND_S - 0.2)
    stage.nobody_was_told()
    stage.advance(0.5)
    assert only_told(stage, "c", "a", "b").cause.kind is CauseKind.STALLED
    stage.quorum("a", "b")


def test_what_a_hanging_lighthouse_did_not_see_is_no_lack_of_progress() -> None:
    stage = bounded(*NAMES)
    stage.hang_lighthouse(2 * BOUND_S)
    for name in NAMES:
        stage[name].does(Phase.COMPUTE)
    stage.advance(BOUND_S - 0.2)
    stage.nobody_was_told()


# --- jobs ---------------------------------------------------------------------------------------------


def test_jobs_with_the_same_names_do_not_know_of_each_other(trio: Stage) -> None:
    """Not even where the name of one job begins with that of the other."""
    theirs = ("train2:a", "train2:b")
    trio.add(*theirs, min_replicas=2)
    trio.quorum(*theirs)
    ours = trio.quorum(*NAMES)
    assert {ours.job_id, trio.await_quorum(*theirs).job_id} == {"train", "train2"}

    trio["train2:b"].die()
    trio.advance(5.0)
    trio.trainers.pop("train2:b")
    assert only_told(trio, "b", "train2:a").incarnation > trio["b"].incarnation
    assert [trio[name].told for name in NAMES] == [[], [], []]
    assert (trio.job("train").seq, trio.job("train2").seq) == (0, 1)
    assert [m.state for m in trio.job("train2").members] == [MemberState.ALIVE, MemberState.FAILED]
    assert [m.state for m in trio.job("train").members] == [MemberState.ALIVE] * 3

    trio["train2:a"].ask()
    trio.advance(5.0)
    waiting = trio["train2:a"].requests.waiting
    assert waiting is not None
    assert waiting.reason is Reason.TOO_FEW_REPLICAS, "its own min_replicas"
    assert trio.quorum(*NAMES).quorum_id == ours.quorum_id

    trio["a"].die()
    trio.settle()
    trio.trainers.pop("a")
    only_told(trio, "a", "b", "c")
    assert len(trio["train2:a"].told) == 1
    assert len(trio["train2:a"].pg.aborted) == 1, "when its own b died"
    trio.quorum("b", "c")


def test_a_restarted_lighthouse_keeps_jobs_apart(trio: Stage) -> None:
    theirs = ("train2:a", "train2:b", "train2:c")
    trio.add(*theirs)
    trio.quorum(*theirs)
    lives = {name: trainer.incarnation for name, trainer in trio.trainers.items()}
    trio.restart_lighthouse()
    trio.advance(5.0)
    assert trio.quorum(*NAMES).quorum_id != trio.quorum(*theirs).quorum_id
    trio.nobody_was_told()
    assert {name: trainer.incarnation for name, trainer in trio.trainers.items()} == lives
    trio["train2:c"].die()
    trio.settle()
    only_told(trio, "c", "train2:a", "train2:b")
    assert [trio[name].told for name in NAMES] == [[], [], []]


# --- what the wire loses ------------------------------------------------------------------------------


def test_a_lost_notice_is_missed_by_the_next_beacon(trio: Stage) -> None:
    listener = trio["a"].listener
    assert listener is not None
    listener.wire.lost = (NoticeBatch,)
    trio["c"].die()
    trio.settle()
    assert trio["a"].told == []
    assert len(trio["b"].told) == 1
    listener.wire.lost = ()
    trio.advance(0.6)
    only_told(trio, "c", "a", "b")


def test_of_two_notices_the_lost_first_one_is_told_too(trio: Stage) -> None:
    trio.add("d")
    listener = trio["a"].listener
    assert listener is not None
    listener.wire.lost = (NoticeBatch,)
    trio["c"].die()
    trio.settle()
    listener.wire.lost = ()
    trio["d"].die()
    trio.settle()
    assert sorted(notice.replica_id for notice in trio["a"].told) == ["c", "d"]
    trio.advance(5.0)
    assert len(trio["a"].told) == 2


def test_a_lost_answer_is_given_again(trio: Stage) -> None:
    trio["a"].wire.lost = (QuorumFormed,)
    for name in NAMES:
        trio[name].ask()
    trio.advance(0.01)
    trio["a"].wire.lost = ()
    trio.await_quorum(*NAMES)


def test_an_answer_lost_with_its_connection_is_asked_for_again(trio: Stage) -> None:
    trio["b"].ask()
    trio["c"].ask()
    trio.settle()
    trio["a"].ask()
    assert trio.service is not None
    trio.service.run_once()  # the answer is on its way
    trio.network.cut(trio["a"].wire.end)
    trio.network.mend(trio["a"].wire.end)
    trio.await_quorum(*NAMES)


def test_a_connection_that_died_without_a_word_is_made_anew(trio: Stage) -> None:
    trio["a"].wire.is_dead = True
    trio.quorum(*NAMES)
    assert trio["a"].wire.reconnects == 1


def test_a_line_that_is_down_for_a_moment_costs_nobody_anything(trio: Stage) -> None:
    for _ in range(5):
        for wire in trio.wires():
            trio.network.cut(wire.end)
        trio.advance(0.2)
        assert {trio.member(name).state for name in NAMES} == {MemberState.SUSPECT}
        for wire in trio.wires():
            trio.network.mend(wire.end)
        trio.advance(0.5)
    trio.nobody_was_told()
    trio.quorum(*NAMES)


@pytest.mark.parametrize("whose", [0, 1], ids=["trainer", "listener"])
def test_either_line_may_be_down_for_a_moment(trio: Stage, whose: int) -> None:
    line = list(trio.wires())[whose].end
    trio.network.cut(line)
    trio["c"].die()
    trio.advance(0.2)
    trio.network.mend(line)
    del trio.trainers["c"]
    trio.quorum("a", "b")
    trio.advance(1.0)
    only_told(trio, "c", "a", "b")


def test_one_cut_off_for_long_joins_again(trio: Stage) -> None:
    first = trio["c"].incarnation
    assert trio["c"].listener is not None
    ends = [trio["c"].wire.end, trio["c"].listener.wire.end]
    for end in ends:
        trio.network.cut(end)
    trio.advance(0.5)
    only_told(trio, "c", "a", "b")
    trio.quorum("a", "b")
    for end in ends:
        trio.network.mend(end)
    trio.advance(0.5)
    assert len(trio["c"].pg.aborted) == 1, "it knows that it is over"
    trio["c"].ask()
    trio.settle()
    trio.quorum("a", "b", among=NAMES)
    assert trio["c"].incarnation > first
    trio.advance(5.0)
    assert len(trio["a"].told) == 1


# --- another listener ---------------------------------------------------------------------------------


def test_a_new_listener_goes_on_with_the_same_life(trio: Stage) -> None:
    trio["c"].start_listener()
    trio.advance(5.0)
    trio.nobody_was_told()
    assert trio.member("c").incarnation == trio["c"].incarnation
    trio["a"].die()
    trio.settle()
    assert len(trio["c"].told) == 1
    trio["c"].die()
    trio.settle()
    assert len(trio["b"].told) == 2


def test_a_new_listener_tells_what_was_missed_between_the_two(trio: Stage) -> None:
    listener = trio["b"].listener
    assert listener is not None
    listener.wire.is_dead = True
    trio["c"].die()
    trio.settle()
    assert trio["b"].told == []
    trio["b"].start_listener()
    trio.settle()
    only_told(trio, "c", "a", "b")


# --- another lighthouse -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "epoch", [None, EPOCH + 500, EPOCH - 500], ids=["state", "no state", "clock went back"]
)
def test_a_lighthouse_that_is_restarted_fails_nobody_and_the_quorum_goes_on(
    trio: Stage, epoch: int | None
) -> None:
    lives = [trio[name].incarnation for name in NAMES]
    before = trio["a"].installed
    trio.restart_lighthouse(epoch)
    trio.advance(0.3)
    formed = trio.quorum(*NAMES)
    assert before is not None
    assert formed.quorum_id > before.quorum_id
    assert [trio[name].incarnation for name in NAMES] == lives
    trio.advance(10.0)
    trio.nobody_was_told()
    assert trio.core.epoch > EPOCH
    trio["c"].die()
    trio.settle()
    only_told(trio, "c", "a", "b")


@pytest.mark.parametrize("down_s", [0.0, 0.2, 3.0, 30.0])
def test_it_may_be_away_while_they_wait(trio: Stage, down_s: float) -> None:
    trio["a"].ask()
    trio["b"].ask()
    trio.advance(0.1)
    trio.kill_lighthouse()
    trio.advance(down_s)
    trio.start_lighthouse(EPOCH + 1, restarted=True)
    trio["c"].ask()
    trio.await_quorum(*NAMES)
    trio.advance(5.0)
    trio.nobody_was_told()


def test_one_that_died_while_it_was_away_is_told_when_it_is_back(trio: Stage) -> None:
    trio.kill_lighthouse()
    trio["c"].die()
    trio.advance(1.0)
    trio.start_lighthouse(EPOCH + 1, restarted=True)
    trio.advance(2.5)
    assert only_told(trio, "c", "a", "b").cause in (KILLED, Cause(CauseKind.LOST_IN_RESTART))
    trio.quorum("a", "b")


def test_one_that_vanished_while_it_was_away_is_given_up_in_the_end(trio: Stage) -> None:
    trio.kill_lighthouse()
    trio["c"].vanish()
    trio.advance(1.0)
    trio.start_lighthouse(EPOCH + 1, restarted=True)
    trio["a"].ask()
    trio["b"].ask()
    trio.advance(2.5)
    assert only_told(trio, "c", "a", "b").cause.kind is CauseKind.LOST_IN_RESTART
    trio.await_quorum("a", "b")


def test_a_life_that_the_old_one_gave_up_and_the_new_one_takes_back_is_accepted(trio: Stage) -> None:
    """Cut off and given up, c never heard of it; to the new lighthouse it is a member like any other."""
    assert trio["c"].listener is not None
    ends = [trio["c"].wire.end, trio["c"].listener.wire.end]
    for end in ends:
        trio.network.cut(end)
    trio.advance(0.5)
    only_told(trio, "c", "a", "b")
    trio.restart_lighthouse()
    for end in ends:
        trio.network.mend(end)
    trio.advance(0.5)
    assert len(trio["c"].lives) == 1
    formed = trio.quorum(*NAMES)
    trio["c"].die()
    trio.settle()
    assert trio["a"].pg.aborted[-1] == formed.quorum_id.packed, "and when it ends, that counts"


@pytest.mark.parametrize("whose", [0, 1], ids=["trainer", "listener"])
def test_what_one_connection_alone_has_seen_keeps_nobody_out(trio: Stage, whose: int) -> None:
    """A lighthouse of a later epoch was there for a moment, and only this connection met it."""
    for other in set(trio.wires()) - {list(trio.wires())[whose]}:
        trio.network.cut(other.end)
    trio.restart_lighthouse(EPOCH + 600)
    trio["a"].ask()
    trio.advance(0.2)
    trio.restart_lighthouse(EPOCH - 600)
    for wire in trio.wires():
        trio.network.mend(wire.end)
    trio["b"].ask()
    trio["c"].ask()
    trio.await_quorum(*NAMES)
    trio.advance(5.0)
    trio.nobody_was_told()
    assert trio.core.epoch > EPOCH + 600
    trio["c"].die()
    trio.settle()
    only_told(trio, "c", "a", "b")


def test_a_lighthouse_that_hangs_and_goes_on_blames_nobody(trio: Stage) -> None:
    before = trio["a"].installed
    trio["a"].ask()
    trio.hang_lighthouse(5.0)
    assert trio["a"].wire.reconnects > 0
    trio["b"].ask()
    trio["c"].ask()
    formed = trio.await_quorum(*NAMES)
    assert before is not None
    assert formed.quorum_id == before.quorum_id
    trio.advance(5.0)
    trio.nobody_was_told()


def test_a_second_restart_finds_them_as_the_first_did(trio: Stage) -> None:
    for _ in range(3):
        trio.restart_lighthouse()
        trio.advance(0.2)
        trio.quorum(*NAMES)
    trio.advance(5.0)
    trio.nobody_was_told()


# --- whatever happens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_what_harms_nobody_is_told_to_nobody(seed: int) -> None:
    """Cut lines, lost frames, new listeners and lighthouses: all live on, and every step has its quorum.

    A failure's id holds its seed, and replays it.
    """
    rng = random.Random(seed)
    stage = Stage()
    stage.add(*NAMES)
    epochs = rng.sample(range(EPOCH - 900, EPOCH + 900), 400)  # each lighthouse has its own
    for _ in range(12):
        for name in rng.sample(NAMES, 3):
            stage[name].ask()
            if rng.random() < 0.5:
                disturb(stage, rng, epochs)
            stage.advance(rng.choice([0.0, 0.0, 0.02, 0.3]))
        stage.await_quorum(*NAMES)
        for name in NAMES:
            stage[name].commit()
    stage.advance(5.0)
    stage.nobody_was_told()


def disturb(stage: Stage, rng: random.Random, epochs: list[int]) -> None:
    wires = list(stage.wires())
    blow = rng.randrange(5)
    if blow == 0:
        for wire in rng.sample(wires, rng.randrange(1, len(wires))):
            stage.network.cut(wire.end)
        stage.advance(rng.uniform(0.0, 0.25))
        for wire in wires:
            stage.network.mend(wire.end)
        stage.advance(0.1)  # one beat gets through before the next blow
    elif blow == 1:
        wires[2 * rng.randrange(3)].is_dead = True  # a trainer's own, that no beat depends on
    elif blow == 2:
        stage[rng.choice(NAMES)].start_listener()
    elif blow == 3:
        stage.kill_lighthouse()
        stage.advance(rng.choice([0.0, 0.1, 1.0, 5.0]))
        stage.start_lighthouse(
            next(e for e in iter(epochs.pop, None) if e != stage.core.epoch), restarted=True
        )
    else:
        wire = rng.choice(wires)
        wire.lost = (QuorumFormed, NoticeBatch)
        stage.advance(0.05)
        wire.lost = ()


@pytest.mark.parametrize("seed", range(40))
def test_who_is_struck_is_told_once_and_who_lives_goes_on(seed: int) -> None:
    """Deaths, departures and replacements among the harmless things: the living agree, and hear the truth.

    A failure's id holds its seed, and replays it.
    """
    rng = random.Random(seed)
    stage = Stage()
    stage.add(*NAMES)
    stage.quorum(*NAMES)
    ended: list[tuple[str, Incarnation]] = []
    for _ in range(8):
        victim = rng.choice(NAMES)
        ended.append((victim, stage[victim].incarnation))
        end = rng.choice([Trainer.die, Trainer.leave])
        end(stage[victim])
        if rng.random() < 0.5:
            stage.settle()
        if rng.random() < 0.5:
            disturb_harmlessly_for(stage, rng, victim)
        survivors = [name for name in NAMES if name != victim]
        stage.advance_until(lambda: all(ended[-1] in told_of(stage[name]) for name in survivors))  # noqa: B023  # at once
        stage.trainers.pop(victim, None)
        stage.quorum(*survivors)
        stage.add(victim)
        stage.quorum(*NAMES)
    for trainer in stage.trainers.values():
        told = told_of(trainer)
        assert len(set(told)) == len(told), "each once"
        assert set(told) <= set(ended), "and nothing but the truth"
        assert len(trainer.lives) == 1


def told_of(trainer: Trainer) -> list[tuple[str, Incarnation]]:
    return [(notice.replica_id, notice.incarnation) for notice in trainer.told]


def disturb_harmlessly_for(stage: Stage, rng: random.Random, victim: str) -> None:
    """While the lighthouse still has to hear of the victim's end."""
    bystanders = [name for name in stage.trainers if name != victim]
    blow = rng.randrange(3)
    if blow == 0:
        for wire in [stage[name].wire for name in bystanders]:
            stage.network.cut(wire.end)
            stage.network.mend(wire.end)
    elif blow == 1:
        stage[rng.choice(bystanders)].start_listener()
    else:
        listener = stage[rng.choice(bystanders)].listener
        assert listener is not None
        listener.wire.lost = (NoticeBatch,)
        stage.advance(rng.choice([0.0, 0.1]))
        listener.wire.lost = ()
