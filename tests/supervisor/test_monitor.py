"""The monitor around the rules: real processes, a process manager that is a fake, and its own bad luck."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from procguard.client.stack_dumps import STACK_SIGNAL
from procguard.errors import ProcGuardError, UsageError
from procguard.supervisor import monitor as monitor_module
from procguard.supervisor import stacks
from procguard.supervisor.monitor import HealthStatus, ProcessMonitor
from procguard.worker_config import WorkerConfig
from tests.supervisor.programs import DEADLINE_S, NOTIFY, WAIT, process, until

FOR_EVER = 1000.0


class Watching:
    """A running monitor, and what it has told."""

    def __init__(self, monitor: ProcessMonitor) -> None:
        self.monitor = monitor
        self.calls: list[list[str]] = []
        self.changes: list[tuple[str, HealthStatus]] = []
        monitor.set_failure_callback(self.calls.append)
        monitor.set_status_callback(lambda worker_id, status, _: self.changes.append((worker_id, status)))

    @property
    def failed(self) -> list[str]:
        return [worker_id for call in self.calls for worker_id in call]

    def until_failed(self, *worker_ids: str) -> None:
        until(lambda: sorted(self.failed) == sorted(worker_ids), f"failure of {worker_ids}")

    def until_status(self, worker_id: str, status: HealthStatus) -> None:
        until(lambda: self.monitor.get_status(worker_id) is status, f"{worker_id} {status.value}")


@contextlib.contextmanager
def watching(*configs: WorkerConfig, **settings: Any) -> Iterator[Watching]:
    settings = {"heartbeat_timeout": FOR_EVER, "zombie_detection": False, **settings}
    monitor = ProcessMonitor(configs, **settings)
    seen = Watching(monitor)
    monitor.start()
    try:
        yield seen
    finally:
        monitor.stop()


@dataclass(frozen=True)
class Exit:
    kind: str
    text: str
    code: int | None = None
    signal: str | None = None
    core_dumped: bool = False


@dataclass(frozen=True)
class WorkerStarted:
    worker_id: str
    pid: int
    at: float = 0.0


@dataclass(frozen=True)
class WorkerEnded:
    worker_id: str
    exit: Exit
    at: float = 0.0


@dataclass
class FakeProcesses:
    """A process manager whose events are told by the test."""

    running: dict[str, dict[str, Any]] = field(default_factory=dict)
    subscribers: list[Callable[[Any], None]] = field(default_factory=list)
    stderr: bytes = b""

    def subscribe(self, callback: Callable[[Any], None], /) -> None:
        self.subscribers.append(callback)

    def statuses(self) -> dict[str, dict[str, Any]]:
        return self.running

    def tail(self, worker_id: str, bytes_max: int = 0, stream: str = "") -> bytes:
        if worker_id == "unknown":
            raise UsageError("unknown")
        return self.stderr[-bytes_max:]

    def tell(self, event: object) -> None:
        for subscriber in self.subscribers:
            subscriber(event)


def status(pid: int | None) -> dict[str, Any]:
    return {"pid": pid, "started_at": 1.5 if pid else None, "state": "running" if pid else "stopped"}


# --- deaths ---


def test_the_death_of_a_process_registered_by_its_pid() -> None:
    with watching() as seen, process(WAIT) as worker:
        seen.monitor.register_worker("w", {"pid": worker.pid})
        assert seen.monitor.get_status("w") is HealthStatus.HEALTHY
        worker.kill()
        seen.until_failed("w")
        assert seen.monitor.get_status("w") is HealthStatus.ZOMBIE
        assert seen.monitor.get_reasons("w") == ["killed by SIGKILL"]


def test_a_clean_end_is_no_failure() -> None:
    with watching() as seen, process(WAIT) as worker:
        seen.monitor.register_worker("w", {"pid": worker.pid})
        assert worker.stdin is not None
        worker.stdin.close()
        seen.until_status("w", HealthStatus.STOPPED)
        assert seen.failed == []


def test_a_process_that_was_gone_before_it_was_registered() -> None:
    with process(WAIT) as worker:
        worker.kill()
    with watching() as seen:
        seen.monitor.register_worker("w", {"pid": worker.pid})
        seen.until_failed("w")
        assert seen.monitor.get_status("w") is HealthStatus.DEAD


def test_a_process_that_cannot_be_watched_has_not_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def too_many(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", too_many)
    with watching() as seen:
        seen.monitor.register_worker("w", {"pid": os.getpid()})
        assert "The death of w will not be seen: Too many open files" in caplog.text
        assert seen.monitor.get_status("w") is HealthStatus.HEALTHY


def test_workers_registered_before_the_start_are_watched_after_it() -> None:
    monitor = ProcessMonitor([{"worker_id": "w"}], zombie_detection=False)
    seen = Watching(monitor)
    with process(WAIT) as worker:
        monitor.register_worker("w", {"pid": worker.pid})
        for _ in range(2):  # and again after a stop
            monitor.start()
            monitor.start()
            monitor.stop()
            monitor.stop()
        monitor.start()
        worker.kill()
        seen.until_failed("w")
        monitor.stop()


def test_new_settings_do_not_lose_a_running_process() -> None:
    with watching() as seen, process(WAIT) as worker:
        seen.monitor.register_worker("w", {"pid": worker.pid})
        seen.monitor.register_worker("w", {"start_period": 5, "worker_type": "notify"})
        assert seen.monitor.get_status("w") is HealthStatus.STARTING
        seen.monitor.register_worker("w", {})
        assert seen.monitor.get_status("w") is HealthStatus.STARTING
        worker.kill()
        seen.until_failed("w")


def test_who_is_watched_no_longer_fails_no_longer() -> None:
    with watching() as seen, process(WAIT) as worker, process(WAIT) as other:
        seen.monitor.register_worker("w", {"pid": worker.pid})
        seen.monitor.register_worker("other", {"pid": other.pid})
        assert seen.monitor.unregister_worker("w")
        assert not seen.monitor.unregister_worker("w")
        worker.kill()
        worker.wait()
        other.kill()
        seen.until_failed("other")


def test_the_process_manager_tells_of_starts_and_ends() -> None:
    processes = FakeProcesses(running={"adopted": status(os.getpid()), "idle": status(None)})
    with watching(process_manager=processes) as seen:
        for worker_id in ("adopted", "idle", "w"):
            seen.monitor.register_worker(worker_id)
        seen.until_status("adopted", HealthStatus.HEALTHY)
        processes.tell(WorkerStarted("w", os.getpid()))
        seen.until_status("w", HealthStatus.HEALTHY)
        processes.tell(WorkerEnded("w", Exit("error", "exit code 3", code=3)))
        seen.until_failed("w")
        assert seen.monitor.get_status("w") is HealthStatus.DEAD
        processes.tell(WorkerStarted("w", os.getppid()))
        seen.until_status("w", HealthStatus.HEALTHY)
        processes.tell(WorkerEnded("w", Exit("operator", "stopped by operator")))
        seen.until_status("w", HealthStatus.STOPPED)
        processes.tell(WorkerEnded("stranger", Exit("error", "exit code 3")))
        processes.tell(object())
        assert seen.monitor.get_status("idle") is HealthStatus.UNKNOWN
        assert seen.failed == ["w"]
        until(lambda: ("w", HealthStatus.STOPPED) in seen.changes)
        assert [status.value for worker_id, status in seen.changes if worker_id == "w"] == [
            *("healthy", "dead", "healthy", "stopped")
        ]


def test_who_is_registered_after_its_start_is_known_to_run_and_after_its_end_to_have_ended() -> None:
    processes = FakeProcesses()
    with watching(process_manager=processes) as seen:
        seen.monitor.register_worker("first")
        processes.tell(WorkerStarted("w", os.getpid()))
        processes.tell(WorkerStarted("gone", os.getpid()))
        processes.tell(WorkerEnded("gone", Exit("error", "exit code 1")))
        processes.tell(WorkerStarted("first", os.getppid()))
        seen.until_status("first", HealthStatus.HEALTHY)  # so the others have been taken in too
        seen.monitor.register_worker("w")
        assert seen.monitor.get_status("w") is HealthStatus.HEALTHY
        seen.monitor.register_worker("gone")
        seen.until_failed("gone")


def test_an_event_knows_better_than_a_list_that_is_older() -> None:
    class Racing(FakeProcesses):
        def statuses(self) -> dict[str, dict[str, Any]]:
            self.tell(WorkerEnded("w", Exit("error", "exit code 3")))
            return {"w": status(os.getpid())}

    with watching(WorkerConfig(worker_id="w", command="x"), process_manager=Racing()) as seen:
        seen.until_failed("w")
        assert seen.monitor.get_status("w") is HealthStatus.DEAD


def test_all_that_fail_in_one_wake_are_one_call() -> None:
    processes = FakeProcesses()
    with watching(process_manager=processes) as seen:
        names = [f"w{number}" for number in range(20)]
        for worker_id in names:
            seen.monitor.register_worker(worker_id)
        with seen.monitor._inbox_lock:  # as if the loop were busy just now
            seen.monitor._inbox += [
                (
                    0.0,
                    each,
                    monitor_module.endings.of_worker_event(
                        WorkerEnded(each, Exit("signal", "killed by SIGKILL"))
                    ),
                )
                for each in names
            ]
        seen.monitor._wake()
        seen.until_failed(*names)
        assert len(seen.calls) == 1


def test_a_recovery_that_takes_long_does_not_stop_the_watching() -> None:
    processes = FakeProcesses()
    recovering, calls = threading.Event(), []

    def recover(worker_ids: list[str]) -> None:
        calls.append(worker_ids)
        recovering.wait(DEADLINE_S)

    with watching(process_manager=processes) as seen:
        seen.monitor.set_failure_callback(recover)
        for worker_id in "abc":
            seen.monitor.register_worker(worker_id)
        processes.tell(WorkerEnded("a", Exit("error", "exit code 1")))
        until(lambda: calls == [["a"]])
        for worker_id in "bc":
            processes.tell(WorkerEnded(worker_id, Exit("error", "exit code 1")))
            seen.until_status(worker_id, HealthStatus.DEAD)
        assert calls == [["a"]]
        recovering.set()
        until(lambda: calls == [["a"], ["b", "c"]])


def test_a_failure_that_a_recovery_has_dealt_with_meanwhile_is_not_told_again() -> None:
    processes = FakeProcesses()
    recovering, calls = threading.Event(), []

    def recover(worker_ids: list[str]) -> None:
        calls.append(worker_ids)
        recovering.wait(DEADLINE_S)

    with watching(process_manager=processes) as seen:
        seen.monitor.set_failure_callback(recover)
        for worker_id in "abc":
            seen.monitor.register_worker(worker_id)
            processes.tell(WorkerStarted(worker_id, os.getpid()))
        processes.tell(WorkerEnded("a", Exit("error", "exit code 1")))
        until(lambda: calls == [["a"]])
        for worker_id in "bc":
            processes.tell(WorkerEnded(worker_id, Exit("error", "exit code 1")))
            seen.until_status(worker_id, HealthStatus.DEAD)
        processes.tell(WorkerStarted("b", os.getppid()))
        seen.until_status("b", HealthStatus.HEALTHY)
        recovering.set()
        until(lambda: calls == [["a"], ["c"]])
        until(lambda: seen.monitor.report("b"))


def test_who_is_being_stopped_may_fall_silent() -> None:
    processes = FakeProcesses()
    with watching(process_manager=processes, heartbeat_timeout=0.3) as seen:
        for worker_id in ("stopping", "hung"):
            processes.running[worker_id] = status(os.getpid())
            seen.monitor.register_worker(worker_id)
            seen.monitor.heartbeat(worker_id)
        processes.running["stopping"]["state"] = "stopping"
        seen.until_status("stopping", HealthStatus.UNRESPONSIVE)
        seen.until_failed("hung")
        processes.tell(WorkerEnded("stopping", Exit("operator", "stopped for the recovery")))
        seen.until_status("stopping", HealthStatus.STOPPED)
        assert seen.calls == [["hung"]]


def test_what_a_callback_raises_is_logged_and_the_watching_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    processes = FakeProcesses()

    def stumble(*_: object) -> None:
        raise RuntimeError("theirs")

    with watching(process_manager=processes) as seen:
        seen.monitor.set_failure_callback(stumble)
        seen.monitor.set_status_callback(stumble)
        seen.monitor.register_worker("w")
        processes.tell(WorkerEnded("w", Exit("error", "exit code 1")))
        until(
            lambda: (
                "The failure callback raised" in caplog.text and "The status callback raised" in caplog.text
            )
        )
        seen.monitor.set_failure_callback(seen.calls.append)
        processes.tell(WorkerStarted("w", os.getpid()))
        processes.tell(WorkerEnded("w", Exit("error", "exit code 1")))
        seen.until_failed("w")


# --- silence ---


def test_a_worker_that_has_beaten_and_falls_silent() -> None:
    with watching(heartbeat_timeout=0.3) as seen:
        seen.monitor.register_worker("w")
        seen.monitor.register_worker("never")
        assert seen.monitor.heartbeat("w")
        assert not seen.monitor.heartbeat("stranger")
        seen.until_failed("w")
        assert seen.monitor.get_status("w") is HealthStatus.UNRESPONSIVE
        assert seen.monitor.get_status("never") is HealthStatus.UNKNOWN
        seen.monitor.heartbeat("w")
        seen.until_status("w", HealthStatus.HEALTHY)


def test_an_idle_worker_is_found_and_a_busy_one_beside_it_is_not(tmp_path: Path) -> None:
    busy = "import os, time\nwhile True: time.sleep(0.01); os.write(1, b'.')"
    settings: dict[str, Any] = {
        "heartbeat_timeout": 0.5,
        "monitoring_interval": 0.05,
        "zombie_detection": True,
    }
    with (
        watching(**settings) as seen,
        process(WAIT, output=tmp_path / "idle") as idle,
        process(busy, output=tmp_path / "busy") as writing,
    ):
        seen.monitor.register_worker("idle", {"pid": idle.pid, "start_period": 0})
        seen.monitor.register_worker("busy", {"pid": writing.pid, "start_period": 0})
        seen.monitor.register_worker("starting", {"pid": os.getpid(), "start_period": 600})
        seen.until_failed("idle")
        assert seen.monitor.get_status("busy") is HealthStatus.HEALTHY
        usage = seen.monitor.get_usage("idle")
        assert usage is not None
        assert usage.rss_bytes > 1 << 20
        assert seen.monitor.get_usage("stranger") is None


def test_a_stalled_monitor_fails_nobody(caplog: pytest.LogCaptureFixture) -> None:
    jump = [0.0]
    with watching(heartbeat_timeout=1.5, clock=lambda: time.monotonic() + jump[0]) as seen:
        seen.monitor.register_worker("w")
        seen.monitor.heartbeat("w")
        seen.until_status("w", HealthStatus.HEALTHY)
        jump[0] = 500.0
        until(lambda: "held up for" in caplog.text)
        assert seen.monitor.get_status("w") is HealthStatus.HEALTHY
        assert seen.failed == []
        seen.until_failed("w")


# --- its own word ---


def telling(seen: Watching, program: str, log: Path | None = None) -> Any:
    return process(f"{NOTIFY}\n{program}", env=seen.monitor.environment("w"), output=log)


def test_a_worker_that_promised_ready(tmp_path: Path) -> None:
    with watching(state_dir=tmp_path) as seen:
        program = "sys.stdin.readline(); say('READY=1\\nSTATUS=step 7'); sys.stdin.read()"
        with telling(seen, program) as worker:
            seen.monitor.register_worker("w", {"pid": worker.pid, "worker_type": "notify"})
            assert seen.monitor.get_status("w") is HealthStatus.STARTING
            worker.stdin.write(b"\n")
            worker.stdin.flush()
            seen.until_status("w", HealthStatus.HEALTHY)
            assert seen.monitor.get_reasons("w") == ["says: step 7"]


def test_a_child_of_a_worker_beats_for_it_and_a_stranger_does_not(caplog: pytest.LogCaptureFixture) -> None:
    with watching(heartbeat_timeout=0.3) as seen:
        child = "import os\nsys.stdin.readline()\nif os.fork() == 0: say('WATCHDOG=1')\nsys.stdin.read()"
        with telling(seen, child) as worker, telling(seen, "say('WATCHDOG=trigger')") as stranger:
            seen.monitor.register_worker("w", {"pid": worker.pid})
            worker.stdin.write(b"\n")  # not before: of strangers only the first is named
            worker.stdin.flush()
            until(lambda: f"process {stranger.pid} belongs to no worker" in caplog.text)
            seen.until_failed("w")
            assert seen.monitor.get_reasons("w") == ["no heartbeat for 0.3 s"]


def test_the_environment_is_that_of_a_systemd_service(tmp_path: Path) -> None:
    monitor = ProcessMonitor(heartbeat_timeout=2.5, state_dir=tmp_path)
    wanted = {"NOTIFY_SOCKET": str(tmp_path / "notify.sock"), "WATCHDOG_USEC": "2500000"}
    assert monitor.environment("w") == wanted
    monitor.start()
    assert monitor.environment("w") == wanted
    monitor.stop()
    nowhere = ProcessMonitor()
    assert nowhere.environment("w") == {}
    nowhere.start()
    place = Path(nowhere.environment("w")["NOTIFY_SOCKET"])
    assert place.is_socket()
    nowhere.stop()
    assert not place.parent.exists()


def test_what_is_unheeded_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    program = "sys.stdin.readline(); [say('MAINPID=1') for _ in range(5)]; say('READY=1'); sys.stdin.read()"
    with watching() as seen, telling(seen, program) as worker:
        seen.monitor.register_worker("w", {"pid": worker.pid, "worker_type": "notify"})
        worker.stdin.write(b"\n")
        worker.stdin.flush()
        seen.until_status("w", HealthStatus.HEALTHY)
        assert caplog.text.count("said MAINPID on NOTIFY_SOCKET") == 1


SPEAKS_THROUGH_A_CHILD = """
reading, writing = os.pipe()
if os.fork() == 0:
    say('READY=1')
    os.read(reading, 1)
    os._exit(0)
sys.stdin.readline()
os.write(writing, b'.')
os.wait()
print('gone', flush=True)
sys.stdin.read()
"""


def test_a_worker_that_is_faster_than_the_word_of_its_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its child has spoken for it, and is gone when the worker becomes known."""
    log = tmp_path / "log"
    with watching() as seen, telling(seen, SPEAKS_THROUGH_A_CHILD, log) as worker, process(WAIT) as other:
        until(lambda: "belongs to no worker" in caplog.text)
        worker.stdin.write(b"\n")
        worker.stdin.flush()
        until(lambda: log.read_text() == "gone\n")
        seen.monitor.register_worker("other", {"pid": other.pid, "worker_type": "notify"})
        seen.monitor.register_worker("w", {"pid": worker.pid, "worker_type": "notify"})
        seen.until_status("w", HealthStatus.HEALTHY)
        assert seen.monitor.get_status("other") is HealthStatus.STARTING


def test_a_pidfd_number_that_has_been_given_to_another_process_fails_nobody() -> None:
    with watching() as seen, process(WAIT) as worker:
        seen.monitor.register_worker("w", {"pid": worker.pid})
        pidfd = seen.monitor._watched["w"].pidfd
        assert pidfd is not None
        with seen.monitor._lock:
            seen.monitor._pidfd_ended(pidfd, time.monotonic())
        assert seen.monitor.get_status("w") is HealthStatus.HEALTHY


# --- the health URL ---


def test_a_server_that_stops_answering() -> None:
    with watching() as seen, socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        config = {
            "pid": os.getpid(),
            "health_check_url": url,
            "health_check_interval": 0.05,
            "health_check_timeout": 0.1,
            "health_check_failures": 2,
        }
        seen.monitor.register_worker("w", config)
        assert seen.monitor.get_status("w") is HealthStatus.STARTING
        with listener.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        seen.until_failed("w")  # it still listens, and accepts nobody
        assert seen.monitor.get_status("w") is HealthStatus.UNHEALTHY
        assert "no answer within 0.1 s" in seen.monitor.get_reasons("w")[0]


# --- reports ---


def test_a_death_is_reported_with_its_end_and_its_past(tmp_path: Path) -> None:
    processes = FakeProcesses(stderr=b"x" * 100_000 + b"\xffTraceback: the end")
    with watching(process_manager=processes, state_dir=tmp_path) as seen:
        for worker_id in ("w", "unknown"):
            seen.monitor.register_worker(worker_id)
            for life in range(25):
                processes.tell(WorkerStarted(worker_id, 10_000_000 + life))
                processes.tell(WorkerEnded(worker_id, Exit("error", f"exit code {life}", code=life)))
            until(
                lambda worker_id=worker_id: (
                    (seen.monitor.report(worker_id) or {}).get("text") == "exit code 24"
                )
            )
        report = seen.monitor.report("w")
        assert report is not None
        assert (report["status"], report["cause"], report["pid"]) == ("dead", "died", 10_000_024)
        assert report["exit"] == {
            **{"kind": "error", "code": 24, "signal": None, "core_dumped": False},
            "text": "exit code 24",
        }
        assert len(report["history"]) == 20
        assert report["history"][-1]["text"] == "exit code 24"
        assert report["stderr"].endswith("Traceback: the end")
        assert len(report["stderr"]) <= 64 << 10
        assert (seen.monitor.report("unknown") or {})["stderr"] == "(it cannot be read: unknown)"
        files = list((tmp_path / "failures").glob("*-w.json"))
        assert report in [json.loads(file.read_text()) for file in files]


def test_a_hang_is_reported_with_its_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "find_py_spy", lambda: None)
    program = (
        f"import faulthandler, time\nfaulthandler.register({STACK_SIGNAL})\n"
        f"say('WATCHDOG=1\\nX_PROCGUARD_STACK_SIGNAL={STACK_SIGNAL}')\n"
        "def the_place_where_it_hangs(): time.sleep(1000)\nthe_place_where_it_hangs()"
    )
    with (
        watching(heartbeat_timeout=0.5, state_dir=tmp_path) as seen,
        telling(seen, program, tmp_path / "err") as worker,
    ):
        seen.monitor.register_worker("w", {"pid": worker.pid})
        seen.until_failed("w")
        until(lambda: seen.monitor.report("w"))
        report = seen.monitor.report("w") or {}
        assert (report["cause"], report["stacks_by"]) == ("no_heartbeat", "faulthandler")
        assert "the_place_where_it_hangs" in report["stacks"]
        assert report["threads"][0]["thread"] == worker.pid
        assert worker.poll() is None


def test_without_psutil_it_watches_and_says_once_what_it_cannot_see(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(monitor_module.probes, "_psutil", None)
    with watching() as seen, process(WAIT) as worker, process(WAIT) as other:
        for worker_id, each in (("w", worker), ("other", other)):
            seen.monitor.register_worker(worker_id, {"pid": each.pid})
            each.kill()
        seen.until_failed("w", "other")
        until(lambda: seen.monitor.report("w"))
        assert (seen.monitor.report("w") or {})["machine"] is None
        assert caplog.text.count("psutil is not installed") == 1


# --- bad input ---


def test_settings_may_come_in_a_list_or_by_name() -> None:
    config = WorkerConfig(worker_id="w", command="x", worker_type="notify")
    given = {"command": "x", "worker_type": "notify"}
    for configs in ([config], {"w": config}, [{"worker_id": "w", **given}], {"w": given}):
        monitor = ProcessMonitor(configs)  # type: ignore[arg-type]  # a list of either kind
        monitor.register_worker("w", {"pid": os.getpid()})
        assert monitor.get_status("w") is HealthStatus.STARTING


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"monitoring_interval": 0}, "monitoring_interval: 0 cannot be used"),
        ({"heartbeat_timeout": float("nan")}, "heartbeat_timeout: nan cannot be used"),
        ({"heartbeat_timeout": "10"}, "heartbeat_timeout: '10' cannot be used"),
        ({"cpu_threshold": -1.0}, "cpu_threshold: -1.0 cannot be used"),
        ({"memory_threshold": None}, "memory_threshold: None cannot be used"),
        ({"zombie_detection": "yes"}, "zombie_detection: 'yes' is neither True nor False"),
        ({"worker_configs": [{"command": "x"}]}, "has no worker_id"),
        ({"worker_configs": [{"worker_id": "a b"}]}, "worker_id"),
        ({"worker_configs": [{"worker_id": "w", "start_perod": 1}]}, "start_perod"),
        (
            {"worker_configs": [{"worker_id": "w", "health_check_url": "x"}]},
            "health_check_url",
        ),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        ProcessMonitor(**settings)
    assert said in str(raised.value)


@pytest.mark.parametrize("pid", [0, -1, "7", True])
def test_a_pid_that_is_none(pid: object) -> None:
    with pytest.raises(UsageError, match="is no process id"):
        ProcessMonitor().register_worker("w", {"pid": pid})


def test_a_state_dir_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monitor = ProcessMonitor(state_dir=tmp_path / "file")
    with pytest.raises(ProcGuardError, match="workers cannot report here"):
        monitor.start()
    monitor.stop()
    assert not [each for each in threading.enumerate() if each.name.startswith("procguard-")]


def test_a_bug_of_ours_does_not_end_the_watching(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(monitor_module, "PAUSE_AFTER_BUG_S", 0.0)
    with watching() as seen, process(WAIT) as worker:
        seen.monitor.register_worker("w", {"pid": worker.pid})
        seen.monitor._inbox.append((0.0, "w", "no event"))  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(ProcessMonitor, "_take_in", lambda _: 1 / 0)
            seen.monitor._wake()
            until(lambda: "The monitor stumbled" in caplog.text)
        seen.monitor._inbox.clear()
        worker.kill()
        seen.until_failed("w")
