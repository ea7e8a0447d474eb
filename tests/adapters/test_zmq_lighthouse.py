"""The guard beside a lighthouse: whose beats it hears, which failures it passes on, when workers are ready.

What the lighthouse says is written by the test, but for the last one, in which all of it is real.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.adapters import LighthouseAdapter, WorkerFailure
from procguard.adapters.zmq_lighthouse import living_here
from procguard.client.membership import this_process
from procguard.codec import decode, encode
from procguard.errors import UsageError
from procguard.messages import (
    Cause,
    CauseKind,
    Incarnation,
    JobView,
    MemberState,
    MemberView,
    Message,
    Notice,
    NoticeBatch,
    NoticeView,
    Phase,
    Process,
    QuorumId,
    QuorumView,
    RankView,
    Settings,
    Snapshot,
    SnapshotRequest,
)
from procguard.supervisor.monitor import ProcessMonitor
from tests.adapters.test_communication_contract import eventually
from tests.job import Job

SETTINGS = Settings(0.1, 1.0, 5.0, 0.3, 60.0)
TIMED_OUT = Cause(CauseKind.HEARTBEAT_TIMEOUT)
FAR = Process("elsewhere", "boot", 77, 1)


def member(
    name, number=1, state=MemberState.ALIVE, in_state_s=10.0, beat_age_s=0.1, process=FAR
) -> MemberView:
    rank = RankView(0, False, beat_age_s, 5, Phase.COMPUTE, process)
    return MemberView(name, state, in_state_s, 5, Incarnation(7, number), 1, (rank,), False, None)


def notice(name, number=1, cause=TIMED_OUT) -> Notice:
    return Notice(name, Incarnation(7, number), cause, 5)


def job(*members, quorum=(), age_s=1.0, number=1, notices=(), job_id="default") -> JobView:
    formed = QuorumView(QuorumId(7, number), age_s, tuple(quorum)) if quorum else None
    shown = tuple(NoticeView(1.0, each) for each in notices)
    return JobView(job_id, 1, 0, tuple(members), formed, None, shown)


class FakeLine:
    """A lighthouse that answers each question with what the test says it knows."""

    def __init__(self) -> None:
        self.news = threading.Condition()
        self.jobs: tuple[JobView, ...] = ()
        self.answers = True
        self.uptime_s = 100.0
        self.breaks = False
        self.published: list[bytes] = []
        self.incoming: list[bytes] = []
        self.asked = 0
        self.topics: tuple[int, list[bytes]] = (0, [])
        self.closed = False

    def knows(self, *jobs: JobView) -> None:
        """And has been asked since."""
        with self.news:
            self.jobs = jobs
            asked = self.asked
        assert eventually(lambda: self.asked >= asked + 2)

    def publish(self, message: Message) -> None:
        with self.news:
            self.published.append(b"default\0" + encode(message))

    def send(self, frame: bytes) -> bool:
        assert isinstance(decode(frame), SnapshotRequest)
        with self.news:
            self.asked += 1
            if self.answers:
                self.incoming.append(encode(Snapshot(7, self.uptime_s, SETTINGS, self.jobs, ())))
        return True

    def wait(self, timeout_s: float, fds: Iterable[int] = ()) -> list[int]:
        if self.breaks:
            raise OSError("broken")
        with self.news:
            self.news.wait_for(lambda: self.incoming or self.published, min(timeout_s, 0.005))
        return list(fds)[:0]

    def receive(self, count_max: int) -> list[bytes]:
        with self.news:
            taken, self.incoming = self.incoming, []
        return taken

    def notices(self, count_max: int) -> list[bytes]:
        with self.news:
            taken, self.published = self.published, []
        return taken

    def listen(self, notice_port: int, topics: Iterable[bytes]) -> None:
        self.topics = notice_port, list(topics)

    def reconnect(self) -> None:
        pass

    def explain(self) -> str:
        return ""

    def close(self) -> None:
        self.closed = True


class Watched:
    """An adapter beside a fake lighthouse, and what it has told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
        monkeypatch.setattr("procguard.adapters.zmq_lighthouse.LOOK_INTERVAL_S", 0.005)
        monkeypatch.setattr("procguard.adapters.zmq_lighthouse.EAGER_INTERVAL_S", 0.005)
        self.line = FakeLine()
        self.beats: list[str] = []
        self.failures: list[WorkerFailure] = []
        self.adapter = LighthouseAdapter(timeout=20_000, connect=lambda: self.line, **options)  # type: ignore[arg-type]
        self.adapter.set_heartbeat_callback(self.beats.append)
        self.adapter.set_failure_callback(self.failures.extend)
        for worker_id in ("a", "b"):
            self.adapter.register_worker(worker_id)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    made = Watched(monkeypatch)
    made.adapter.initialize()
    yield made
    made.adapter.close()


# --- beats and failures


def test_it_listens_where_notices_are(watched: Watched) -> None:
    assert watched.line.topics == (29511, [b"default\0"])


def test_a_new_beat_of_a_live_member_is_a_beat(watched: Watched) -> None:
    watched.line.knows(job(member("a"), member("b", state=MemberState.FAILED), member("stranger")))
    assert eventually(lambda: len(watched.beats) >= 1)
    assert set(watched.beats) == {"a"}
    assert watched.adapter.connected_workers() == ["a"]


def test_silence_is_no_beat(watched: Watched) -> None:
    began = time.monotonic()
    watched.line.knows(job(member("a", beat_age_s=0.0)))
    assert eventually(lambda: watched.beats)

    def grow_old() -> None:
        watched.line.jobs = (job(member("a", beat_age_s=time.monotonic() - began + 5.0)),)

    grow_old()
    watched.line.knows(*watched.line.jobs)
    before = len(watched.beats)
    for _ in range(5):
        grow_old()
        watched.line.knows(*watched.line.jobs)
    assert len(watched.beats) == before


def test_a_failure_that_only_the_lighthouse_knows_is_told_once(watched: Watched) -> None:
    watched.line.knows(job(member("a")))
    watched.line.publish(NoticeBatch(7, 1, (notice("a"), notice("stranger"))))
    assert eventually(lambda: watched.failures)
    watched.line.knows(job(member("a", state=MemberState.FAILED), notices=[notice("a")]))
    assert watched.failures == [WorkerFailure("a", "heartbeat timed out", 77, "elsewhere")]


def test_a_notice_that_was_lost_is_found_in_the_snapshot(watched: Watched) -> None:
    watched.line.knows(job(member("a")))
    watched.line.knows(job(member("a", 2), notices=[notice("a")]))
    assert eventually(lambda: watched.failures)
    assert watched.failures == [WorkerFailure("a", "heartbeat timed out", 0, "")]


def test_what_was_over_before_the_first_look_is_old_news(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.line.jobs = (job(member("a", 2), notices=[notice("a")]),)
    with watched.adapter:
        watched.line.knows(*watched.line.jobs)
        watched.line.publish(NoticeBatch(7, 2, (notice("b"),)))
        assert eventually(lambda: watched.failures)
        assert [failure.worker_id for failure in watched.failures] == ["b"]


@pytest.mark.parametrize(
    "kind",
    [CauseKind.LEFT, CauseKind.PROCESS_EXIT, CauseKind.PROCESS_REPLACED, CauseKind.SUPERSEDED],
)
def test_what_the_guard_sees_itself_is_not_told(watched: Watched, kind: CauseKind) -> None:
    watched.line.knows(job(member("a"), member("b")))
    watched.line.publish(NoticeBatch(7, 1, (notice("a", cause=Cause(kind)), notice("b"))))
    assert eventually(lambda: watched.failures)
    assert [failure.worker_id for failure in watched.failures] == ["b"]


def test_callbacks_that_fail_and_frames_that_are_garbage_do_no_harm(watched: Watched) -> None:
    def fails(told: object) -> None:
        raise RuntimeError("mine")

    watched.adapter.set_heartbeat_callback(fails)
    watched.adapter.set_failure_callback(fails)
    with watched.line.news:
        watched.line.incoming.append(b"\xc1")
        watched.line.published.append(b"default\0\xc1")
    watched.line.publish(NoticeBatch(7, 1, (notice("a"),)))
    watched.line.knows(job(member("a")))
    assert eventually(lambda: watched.adapter.connected_workers() == ["a"])


def test_it_carries_no_commands_and_says_who_does(watched: Watched) -> None:
    assert watched.adapter.send_command("a", "save") is False
    assert "adapter_type zmq does" in watched.adapter.request("a", "save").error
    assert watched.adapter.send_heartbeat("a") is True
    assert watched.adapter.send_heartbeat("c") is False
    watched.adapter.unregister_worker("a")
    assert watched.adapter.send_heartbeat("a") is False


def test_a_member_may_have_another_name_than_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, replica_ids={"a": "group-0"}, job_id="train")
    with watched.adapter as adapter:
        watched.line.knows(job(member("group-0"), job_id="train"))
        assert eventually(lambda: watched.beats)
        assert set(watched.beats) == {"a"}
        assert adapter.environment("a") == {
            "PROCGUARD_LIGHTHOUSE": "127.0.0.1:29510",
            "PROCGUARD_JOB_ID": "train",
            "REPLICA_ID": "group-0",
        }
        assert adapter.environment("b")["REPLICA_ID"] == "b"
    assert LighthouseAdapter().environment("a")["PROCGUARD_JOB_ID"] == "default"


def test_the_ranks_of_a_group_may_be_workers_each(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, replica_ids={"a": "group-0", "b": "group-0"})
    with watched.adapter as adapter:
        watched.line.knows(job(member("group-0")))
        assert eventually(lambda: set(watched.beats) == {"a", "b"})
        assert adapter.connected_workers() == ["a", "b"]
        watched.line.publish(NoticeBatch(7, 1, (notice("group-0"),)))
        assert eventually(lambda: watched.failures)
        assert [(failure.worker_id, failure.pid) for failure in watched.failures] == [("a", 0), ("b", 0)]
        adapter.unregister_worker("a")
        assert adapter.connected_workers() == ["b"]


def test_no_lighthouse_is_said_once_and_looked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(monkeypatch)
    watched.line.answers = False
    watched.adapter._timeout_s = 0.01
    with watched.adapter:
        assert "No lighthouse answers at 127.0.0.1:29510 so far" in caplog.text
        assert watched.adapter.connected_workers() == []
        watched.line.answers = True
        watched.line.knows(job(member("a")))
        assert eventually(lambda: watched.adapter.connected_workers() == ["a"])
    assert watched.line.closed


@pytest.mark.parametrize("wrong", [{"keys": "/no/such.key"}, {"port_base": 0}, {"host": ""}])
def test_what_cannot_be_is_said_at_the_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"communication\.adapter_config: "):
        LighthouseAdapter(**wrong).initialize()


# --- a lighthouse that does not answer


def goes_on_beating(watched: Watched) -> bool:
    before = len(watched.beats)
    return bool(eventually(lambda: len(watched.beats) >= before + 10))


def told_after(watched: Watched) -> set[str]:
    """Whose beats come from here on."""
    before = len(watched.beats)
    assert goes_on_beating(watched)
    return set(watched.beats[before:])


def falls_silent(line: FakeLine) -> None:
    with line.news:
        line.answers = False
        line.incoming.clear()


def test_an_outage_of_the_lighthouse_fails_nobody(watched: Watched) -> None:
    timeout_s = 0.5
    failed: list[str] = []
    monitor = ProcessMonitor(heartbeat_timeout=timeout_s, zombie_detection=False)
    monitor.set_failure_callback(failed.extend)
    monitor.register_worker("a", {"pid": os.getpid()})
    watched.adapter.set_heartbeat_callback(monitor.heartbeat)
    watched.line.knows(job(member("a", beat_age_s=0.0)))
    monitor.start()
    try:
        falls_silent(watched.line)
        until = time.monotonic() + 2 * timeout_s
        assert eventually(lambda: failed or time.monotonic() > until)
        assert failed == []
    finally:
        monitor.stop()


@pytest.mark.parametrize("broken", [False, True])
def test_it_beats_for_those_that_were_well_while_nobody_can_tell(watched: Watched, broken: bool) -> None:
    watched.adapter.register_worker("c")
    over = member("b", state=MemberState.FAILED)
    watched.line.knows(job(member("a"), over, member("c", state=MemberState.SUSPECT)))
    falls_silent(watched.line)
    watched.line.breaks = broken
    assert goes_on_beating(watched)
    assert told_after(watched) == {"a", "c"}


def test_who_was_started_again_meanwhile_is_not_beaten_for(watched: Watched) -> None:
    watched.line.knows(job(member("a"), member("b")))
    falls_silent(watched.line)
    assert goes_on_beating(watched)
    watched.adapter.register_worker("a")
    watched.line.knows()  # a look that had begun is over
    assert told_after(watched) == {"b"}


def test_a_process_that_is_gone_is_not_beaten_for(watched: Watched) -> None:
    own = this_process()
    gone = own._replace(start_time=own.start_time + 1)
    watched.line.knows(job(member("a", process=gone), member("b", process=own)))
    falls_silent(watched.line)
    assert goes_on_beating(watched)
    assert told_after(watched) == {"b"}


def test_an_answer_ends_the_doubt(watched: Watched) -> None:
    watched.line.knows(job(member("a"), member("b")))
    falls_silent(watched.line)
    assert goes_on_beating(watched)
    watched.line.answers = True
    watched.line.knows(job(member("b")))
    assert told_after(watched) == {"b"}


def test_a_lighthouse_that_has_just_started_waits_for_its_members(watched: Watched) -> None:
    watched.line.knows(job(member("a"), member("b")))
    watched.line.uptime_s = 0.1
    watched.line.knows(job(member("b", state=MemberState.FAILED)))
    assert told_after(watched) == {"a"}
    falls_silent(watched.line)
    assert told_after(watched) == {"a"}


def test_without_its_transport_nobody_is_ready_or_connected_and_nothing_hangs(watched: Watched) -> None:
    watched.line.knows(job(member("a"), quorum=["a"]))
    watched.line.breaks = True
    assert eventually(lambda: watched.adapter.connected_workers() == [])
    for _ in range(1000):
        assert watched.adapter.wait_ready(["a"], 0.0) is False
    assert watched.adapter.send_heartbeat("a") is True


# --- a quorum


@pytest.mark.parametrize(
    ("seen", "is_ready"),
    [
        (job(member("a"), member("b"), quorum=["a", "b"]), True),
        (job(member("a"), member("b"), member("c"), quorum=["a", "b", "c"]), True),
        (job(member("a"), member("b")), False),
        (job(member("a"), member("b"), quorum=["a"]), False),
        (job(member("a"), quorum=["a"]), False),
        (job(member("a"), member("b", in_state_s=0.5), quorum=["a", "b"]), False),
        (job(member("a"), member("b", state=MemberState.SUSPECT), quorum=["a", "b"]), False),
        (job(member("a"), member("b", state=MemberState.FAILED), quorum=["a", "b"]), False),
        (job(member("a"), member("b"), quorum=["a", "b"], job_id="other"), False),
    ],
)
def test_ready_is_alive_in_one_quorum_that_is_younger_than_all(
    watched: Watched, seen: JobView, is_ready: bool
) -> None:
    watched.line.knows(seen)
    assert watched.adapter.wait_ready(["a", "b"], 20.0 if is_ready else 0.05) is is_ready


def test_a_member_whose_process_is_gone_is_not_ready_though_the_lighthouse_believes_so(
    watched: Watched,
) -> None:
    own = this_process()
    watched.line.knows(job(member("a", process=own), quorum=["a"]))
    assert watched.adapter.wait_ready(["a"], 20.0) is True
    watched.line.knows(job(member("a", process=own._replace(start_time=own.start_time + 1)), quorum=["a"]))
    assert watched.adapter.wait_ready(["a"], 0.05) is False


def test_who_was_in_the_quorum_stays_in_it_though_it_was_suspect_meanwhile(watched: Watched) -> None:
    watched.line.knows(job(member("a"), quorum=["a"]))
    watched.line.knows(job(member("a", in_state_s=0.1), quorum=["a"], age_s=2.0))
    assert watched.adapter.wait_ready(["a"], 20.0) is True
    watched.line.knows(job(member("a", 2, in_state_s=0.1), quorum=["a"], age_s=2.0))
    assert watched.adapter.wait_ready(["a"], 0.05) is False


def test_waiting_ends_when_they_are_ready_and_when_it_closes(watched: Watched) -> None:
    answers: list[bool] = []

    def wait() -> None:
        answers.append(watched.adapter.wait_ready(["a"], 20.0))

    waiting = threading.Thread(target=wait)
    waiting.start()
    watched.line.knows(job(member("a"), quorum=["a"]))
    waiting.join(20.0)
    watched.line.knows()
    waiting = threading.Thread(target=wait)
    waiting.start()
    watched.adapter.close()
    waiting.join(20.0)
    assert answers == [True, False]
    assert watched.adapter.wait_ready([], 0.0) is True


def test_living_is_told_of_ones_own_machine_only() -> None:
    own = this_process()
    assert living_here(own)
    assert not living_here(own._replace(start_time=own.start_time + 1))
    assert not living_here(own._replace(pid=2**22 + 1))
    assert living_here(own._replace(pid=2**22 + 1, host="elsewhere"))
    assert living_here(own._replace(pid=2**22 + 1, boot_id="another"))
    assert living_here(FAR)


# --- all of it real


def test_with_a_lighthouse_and_trainers(tmp_path: Path) -> None:
    beats: set[str] = set()
    failures: list[WorkerFailure] = []
    with Job(tmp_path, "--heartbeat-timeout-ms=600") as training:
        adapter = LighthouseAdapter("127.0.0.1", training.port, timeout=20_000)
        adapter.set_heartbeat_callback(beats.add)
        adapter.set_failure_callback(failures.extend)
        with adapter:
            for worker_id in ("a", "b"):
                adapter.register_worker(worker_id)
            assert adapter.wait_ready(["a", "b"], 0.2) is False
            first, second = training.fill("a", "b")
            assert adapter.wait_ready(["a", "b"], 20.0) is True
            assert eventually(lambda: beats == {"a", "b"})
            second.strike(signal.SIGSTOP)
            assert eventually(lambda: failures)
            [failure] = failures
            assert (failure.worker_id, failure.pid) == ("b", second.pid)
            assert failure.host == os.uname().nodename
            assert adapter.wait_ready(["a", "b"], 0.2) is False
            second.process.kill()
            second.exit_code()
            training.fill("a", "b")
            assert adapter.wait_ready(["a", "b"], 20.0) is True
            assert len(failures) == 1
            assert first.lives
