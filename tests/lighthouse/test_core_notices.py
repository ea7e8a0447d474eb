"""Notices, beacons and resync, told to the core; and what a snapshot shows."""

from __future__ import annotations

import logging

import pytest

from procguard.codec import encode
from procguard.lighthouse import notices as notice_log
from procguard.lighthouse.events import Log, Publish, Received
from procguard.messages import (
    Cause,
    CauseKind,
    Counter,
    MemberState,
    NoticeBatch,
    Phase,
    Resync,
    Snapshot,
    SnapshotRequest,
    Welcome,
)
from tests.lighthouse.story import EPOCH, SETTINGS, Story


def names(batch: NoticeBatch) -> list[str]:
    return [notice.replica_id for notice in batch.notices]


class TestBatches:
    def test_five_hundred_deaths_in_one_batch_are_one_notice_batch(self) -> None:
        story = Story()
        doomed = [f"r{number:03d}" for number in range(500)]
        story.join("a", *doomed)
        story.kill(*doomed)
        (batch,) = story.batches()
        assert sorted(names(batch)) == doomed
        assert (batch.epoch, batch.seq) == (EPOCH, 1)

    def test_so_are_leases_that_run_out_in_one_turn(self) -> None:
        story = Story()
        doomed = [f"r{number:03d}" for number in range(100)]
        story.join("a", *doomed)
        story.advance(1.0)
        story.silence(*doomed)
        story.advance(1.1)
        (batch,) = story.batches()
        assert sorted(names(batch)) == doomed

    def test_each_batch_has_the_next_number_of_its_job(self) -> None:
        story = Story()
        story.join("a", "b", "c", "other:a", "other:b")
        story.kill("a")
        story.kill("b", "other:a")
        assert [(batch.seq, names(batch)) for batch in story.batches()] == [(1, ["a"]), (2, ["b"])]
        assert [(batch.seq, names(batch)) for batch in story.batches("other")] == [(1, ["a"])]
        late = story.join("d")
        assert story.expect(late, Welcome).seq == 2

    def test_the_log_says_it_as_people_know_it(self) -> None:
        story = Story()
        story.join("a", "b", "c")
        story.silence("a")
        story.kill("b", cause=Cause(CauseKind.PROCESS_EXIT, signal=11))
        story.leave("c", step=8)
        story.advance(1.1)
        lines = {effect.replica_id: effect for effect in story.effects if isinstance(effect, Log)}
        assert "Replica a timed out" in lines["a"].text
        assert "Replica b failed: killed by SIGSEGV" in lines["b"].text
        assert f"pid {story.person('b').process.pid} on host" in lines["b"].text
        assert "sending failure notification" in lines["b"].text
        assert "Replica c left at step 8" in lines["c"].text
        assert [lines[name].level for name in "abc"] == [logging.WARNING, logging.WARNING, logging.INFO]
        assert {line.job_id for line in lines.values()} == {"train"}


class TestBeacons:
    def test_twice_a_second_each_job_hears_its_last_number(self) -> None:
        story = Story()
        story.join("a", "b", "other:a")
        story.advance(0.4)
        story.kill("a")
        story.advance(9.7)
        beacons = story.beacons()
        assert 20 <= len(beacons) <= 21
        assert set(beacons) == {(EPOCH, 1)}
        assert set(story.beacons("other")) == {(EPOCH, 0)}

    def test_no_members_no_beacons(self) -> None:
        story = Story()
        story.advance(5.0)
        assert [effect for effect in story.effects if isinstance(effect, Publish)] == []


class TestResync:
    def test_a_gap_is_filled(self) -> None:
        story = Story()
        a = story.join("a", "b", "c", "d")
        for name in "bcd":
            story.kill(name)
        a = story.person("a")
        story.say(a.listener, Resync(a.token, EPOCH, 1))
        assert story.expect(a, NoticeBatch) == (EPOCH, 3, tuple(story.notices[1:]))
        story.say(a.listener, Resync(a.token, EPOCH, 3))
        assert story.expect(a, NoticeBatch) == (EPOCH, 3, ())

    def test_whoever_knows_another_epoch_gets_all_the_fallen(self) -> None:
        story = Story()
        story.join("a", "b", "c")
        story.kill("b")
        story.join("b")
        story.kill("b")
        story.kill("c")
        a = story.person("a")
        story.say(a.listener, Resync(a.token, EPOCH - 1, 3))
        resync = story.expect(a, NoticeBatch)
        assert (resync.epoch, resync.seq) == (EPOCH, 3)
        assert resync.notices == tuple(story.notices[1:]), "of b only its last life"

    def test_beyond_the_log_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(notice_log, "BATCHES_MAX", 4)
        story = Story()
        story.join("a")
        for name in "bcdefg":
            story.join(name)
            story.kill(name)
        a = story.person("a")
        story.say(a.listener, Resync(a.token, EPOCH, 2))
        assert names(story.expect(a, NoticeBatch)) == ["d", "e", "f", "g"]
        story.say(a.listener, Resync(a.token, EPOCH, 1))
        assert names(story.expect(a, NoticeBatch)) == ["b", "c", "d", "e", "f", "g"]

    def test_one_that_is_over_is_answered_too(self) -> None:
        story = Story()
        a = story.join("a")
        story.kill("a")
        story.say(a.listener, Resync(a.token, EPOCH, 0))
        assert names(story.expect(a, NoticeBatch)) == ["a"]

    def test_what_is_not_yet_published_is_not_told_twice(self) -> None:
        story = Story()
        a = story.join("a")
        story.join("b")
        with story.one_batch():
            story.kill("b")
            story.tell(Received(a.listener, Resync(a.token, EPOCH, 0)))
        story.kill("b")
        assert story.expect(a, NoticeBatch) == (EPOCH, 0, ())
        assert [names(batch) for batch in story.batches()] == [["b"]] * len(story.batches())


class TestSnapshot:
    def test_it_shows_all_a_dashboard_wants(self) -> None:
        story = Story()
        story.join("a", "b", "c")
        story.advance(1.0)
        story.ask("a", "b", "c", step=4)
        story.advance(2.0)
        story.person("a").phase = Phase.HEAL
        story.beat("a")
        story.kill("c")
        story.ask("a", step=5)
        story.advance(0.05)
        viewer = story.new_person("viewer")
        story.say(viewer.trainer, SnapshotRequest("train"))
        view = story.expect(viewer, Snapshot)
        assert view == story.core.snapshot("train", story.now)
        assert (view.epoch, view.settings) == (EPOCH, SETTINGS)
        assert view.uptime_s == pytest.approx(3.05)
        (job,) = view.jobs
        assert (job.job_id, job.min_replicas, job.seq) == ("train", 1, 1)
        assert job.quorum.replica_ids == ("a", "b", "c")
        assert job.quorum.age_s == pytest.approx(2.05)
        a, b, c = job.members
        assert (a.replica_id, a.state, a.waiting) == ("a", MemberState.ALIVE, True)
        assert a.ranks[0].phase is Phase.HEAL
        assert (b.waiting, b.step, b.incarnation) == (False, 4, story.person("b").incarnation)
        assert b.ranks[0].beat_age_s == pytest.approx(0.05)
        assert (c.state, c.cause) == (MemberState.FAILED, Cause(CauseKind.PROCESS_EXIT, signal=9))
        assert c.in_state_s == pytest.approx(0.05)
        assert c.ranks[0].process == story.person("c").process
        assert [shown.notice.replica_id for shown in job.notices] == ["c"]
        assert Counter("members that failed", 1) in view.counters

    def test_it_holds_no_token_and_no_checkpoint_address(self) -> None:
        story = Story()
        story.join("a", "b")
        story.ask("a", "b", data=b"of no interest")
        story.ask("a")
        frame = encode(story.core.snapshot("", story.now))
        for name in "ab":
            assert story.person(name).token not in frame
        assert b"password of" not in frame
        assert b"of no interest" not in frame

    def test_of_one_job_or_of_all(self) -> None:
        story = Story()
        story.join("a", "other:a", "third:a")

        def jobs(job_id: str) -> list[str]:
            return [job.job_id for job in story.core.snapshot(job_id, story.now).jobs]

        assert jobs("other") == ["other"]
        assert jobs("") == ["other", "third", "train"]
        assert jobs("none such") == []

    def test_only_the_newest_notices_are_shown(self) -> None:
        story = Story()
        story.join("a")
        for _ in range(30):
            story.join("b")
            story.kill("b")
        shown = [view.notice.incarnation for view in story.job().notices]
        assert len(shown) == 20
        assert shown == sorted(shown, reverse=True)
        assert shown[0] == story.person("b").incarnation
