"""Real guards with real workers: what a user does to them, and what becomes of it.

Each test is a short story on one guard process. The parts alone, and every rule of theirs, are tested in
``tests/supervisor``; here is held that they are joined.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.guards import REPOSITORY, Guard, environ_of, lines, lives, python, worker
from tests.lighthouse.running import free_ports

QUICK = {"interval": 0.1, "heartbeat_timeout": 0.5}
APART = {"stop_all_on_failure": False}


def test_a_death_stops_all_and_starts_all_each_with_its_tasks(tmp_path: Path) -> None:
    workers = [worker("a", tasks=["s0", "s1"]), worker("b", tasks=["s2"])]
    with Guard(tmp_path, workers) as guard:
        guard.start()
        before = guard.until_running("a", "b")
        os.kill(before["a"], signal.SIGKILL)
        guard.until_recovered()
        after = guard.until_running("a", "b")
        assert not set(before.values()) & set(after.values())
        tasks = {name: json.loads(environ_of(pid)["PROCGUARD_TASKS"]) for name, pid in after.items()}
        assert tasks == {"a": ["s0", "s1"], "b": ["s2"]}
        shown = guard.workers()
        assert shown["a"]["last_exit"]["kind"] == "signal"
        assert shown["a"]["restarts"] == 1
        assert shown["b"]["last_exit"]["text"] == "stopped for a recovery"
        assert shown["b"]["restarts"] == 0, "a healthy one that was stopped with it is not counted"
        reports = guard.own_folder / "failures"
        [report] = guard.until(lambda: list(reports.glob("*.json")), "there is a report")
        assert "SIGKILL" in report.read_text()
        assert guard.stop() == 0


def test_apart_only_the_failed_one_restarts(tmp_path: Path) -> None:
    with Guard(tmp_path, [worker("a"), worker("b")], recovery=APART) as guard:
        guard.start()
        before = guard.until_running("a", "b")
        os.kill(before["a"], signal.SIGSEGV)
        guard.until_recovered()
        after = guard.until_running("a", "b")
        assert after["b"] == before["b"]
        assert after["a"] != before["a"]


@pytest.mark.parametrize("stop_all", [True, False])
def test_reassignment_leaves_the_failed_one_out_until_an_operator_starts_it(
    tmp_path: Path, stop_all: bool
) -> None:
    workers = [worker("a", tasks=["s0"]), worker("b", tasks=["s1"]), worker("c", tasks=["s2", "s3"])]
    recovery = {"task_reassignment": True, "stop_all_on_failure": stop_all}
    with Guard(tmp_path, workers, recovery=recovery) as guard:
        guard.start()
        before = guard.until_running("a", "b", "c")
        os.kill(before["a"], signal.SIGKILL)
        guard.until_recovered()
        after = guard.until_running("b", "c")
        assert sorted(json.loads(environ_of(after["b"])["PROCGUARD_TASKS"])) == ["s0", "s1"]
        assert (after["c"] == before["c"]) is not stop_all
        assert guard.cli_json("tasks")["workers"] == {"a": [], "b": ["s0", "s1"], "c": ["s2", "s3"]}
        [out] = [one for one in guard.cli_json("status")["workers"] if one["worker_id"] == "a"]
        assert out["state"] == "failed"
        assert "its tasks went to b" in " ".join(out["reasons"])
        assert guard.cli_json("start", "a") == {"a": True}
        guard.until_running("a", "b", "c")


def test_several_failing_together_are_one_chain(tmp_path: Path) -> None:
    ids = [f"w{n}" for n in range(4)]
    with Guard(tmp_path, [worker(name) for name in ids]) as guard:
        guard.start()
        before = guard.until_running(*ids)
        guard.signal(signal.SIGSTOP)  # so that it sees them together, however slow this machine is
        for pid in list(before.values())[:3]:
            os.kill(pid, signal.SIGKILL)
        guard.signal(signal.SIGCONT)
        guard.until_recovered()
        after = guard.until_running(*ids)
        assert not set(before.values()) & set(after.values())
        assert guard.state()["chains_count"] == 1


BEATS = """
import time
from procguard.client import beat
for n in range(10 ** 6):
    beat()
    time.sleep(0.05)
    if n == 10:
        open("beats", "w")
"""


def test_a_worker_that_beat_and_fell_silent_is_replaced(tmp_path: Path) -> None:
    port = free_ports()
    zmq = {"adapter_type": "zmq", "adapter_config": {"port_base": port}}
    entry = worker(
        "a", [sys.executable, "-c", BEATS], working_dir=str(tmp_path), env={"PYTHONPATH": str(REPOSITORY)}
    )
    patient = {**QUICK, "heartbeat_timeout": 1.5}
    with Guard(tmp_path, [entry], communication=zmq, monitoring=patient) as guard:
        guard.start()
        pid = guard.until_running("a")["a"]
        guard.until((tmp_path / "beats").exists, "it has beaten")
        os.kill(pid, signal.SIGSTOP)
        guard.until(lambda: guard.pids().get("a", pid) != pid, "it is replaced")
        assert not lives(pid)
        shown = guard.workers()["a"]["last_exit"]
        assert (shown["kind"], "no heartbeat" in shown["text"]) == ("watchdog", True)


NOTIFIES = """
import os, socket, signal, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(os.environ["NOTIFY_SOCKET"])
s.send(b"READY=1\\nWATCHDOG=1\\nSTATUS=at work")
time.sleep(1000)
"""


def test_a_worker_whose_watchdog_stops_is_replaced(tmp_path: Path) -> None:
    entry = worker("a", python(NOTIFIES), worker_type="notify")
    with Guard(tmp_path, [entry], monitoring=QUICK) as guard:
        guard.start()
        pid = guard.until_running("a")["a"]
        guard.until(lambda: guard.pids().get("a", pid) != pid, "it is replaced")
        assert guard.workers()["a"]["last_exit"]["kind"] == "watchdog"
        assert not lives(pid)


class _Answers(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(type(self).status)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def health_server() -> Iterator[tuple[str, type[_Answers]]]:
    """A URL, and what it answers."""

    class Answers(_Answers):
        pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/health", Answers
        finally:
            server.shutdown()
            thread.join()


def test_a_worker_whose_health_url_fails_is_replaced(tmp_path: Path) -> None:
    with health_server() as (url, answers):
        checks = {"health_check_url": url, "health_check_interval": 0.1, "health_check_failures": 2}
        with Guard(tmp_path, [worker("a", **checks, start_period=0)], monitoring=QUICK) as guard:
            guard.start()
            pid = guard.until_running("a")["a"]
            guard.until(lambda: guard.workers()["a"]["health"] == "healthy", "its URL is good")
            answers.status = 500
            guard.until(lambda: guard.pids().get("a", pid) != pid, "it is replaced")
            answers.status = 200
            assert "health checks in a row failed" in guard.workers()["a"]["last_exit"]["text"]


def test_a_guard_killed_and_started_again_adopts_its_workers_and_guards_them(tmp_path: Path) -> None:
    with Guard(tmp_path, [worker("a", tasks=["s0"]), worker("b")]) as guard:
        guard.start()
        before = guard.until_running("a", "b")
        guard.kill()
        assert all(map(lives, before.values()))
        guard.start()
        assert guard.until_running("a", "b") == before
        assert all(one["adopted"] for one in guard.workers().values())
        assert guard.state()["chains_count"] == 0
        os.kill(before["a"], signal.SIGKILL)
        guard.until_recovered()
        after = guard.until_running("a", "b")
        assert not set(before.values()) & set(after.values())
        assert environ_of(after["a"])["PROCGUARD_TASKS"] == '["s0"]'
        assert guard.stop() == 0
        assert not any(map(lives, after.values()))


def test_tasks_of_a_worker_that_the_file_no_longer_names_go_to_the_next_that_starts(tmp_path: Path) -> None:
    a, b = worker("a", tasks=["s0"]), worker("b", tasks=["s1"])
    with Guard(tmp_path, [a, b], orderly=False) as guard:
        guard.start()
        pids = guard.until_running("a", "b")
        guard.kill()
        guard.write([a])
        guard.start()
        assert guard.until_running("a") == {"a": pids["a"]}
        assert guard.ask("tasks")["workers"]["b"] == ["s1"], "as long as b lives it has its task"
        assert guard.stop() == 0
        os.kill(pids["b"], signal.SIGKILL)
        guard.until(lambda: not lives(pids["b"]), "b is gone")
        guard.start()
        assert json.loads(environ_of(guard.until_running("a")["a"])["PROCGUARD_TASKS"]) == ["s0", "s1"]


def test_a_worker_that_died_while_no_guard_was_there_is_recovered(tmp_path: Path) -> None:
    with Guard(tmp_path, [worker("a"), worker("b")], recovery=APART) as guard:
        guard.start()
        before = guard.until_running("a", "b")
        guard.kill()
        os.kill(before["a"], signal.SIGKILL)
        guard.start()
        after = guard.until_running("a", "b")
        assert after["b"] == before["b"]
        assert after["a"] != before["a"]


def test_workers_that_are_to_die_with_their_guard_do(tmp_path: Path) -> None:
    workers = [worker("a", on_supervisor_death="kill"), worker("b")]
    with Guard(tmp_path, workers) as guard:
        guard.start()
        pids = guard.until_running("a", "b")
        guard.kill()
        guard.until(lambda: not lives(pids["a"]), "a dies with its guard")
        assert lives(pids["b"])


DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("deaf", "w")
time.sleep(1000)
"""


def test_sigterm_leaves_nothing_and_a_second_one_does_not_wait(tmp_path: Path) -> None:
    workers = [worker("a"), worker("b", python(DEAF), stop_timeout=1000, working_dir=str(tmp_path))]
    with Guard(tmp_path, workers) as guard:
        guard.start()
        pids = guard.until_running("a", "b")
        guard.until((tmp_path / "deaf").exists, "b is deaf")
        guard.signal(signal.SIGTERM)
        guard.until(lambda: not lives(pids["a"]), "a ends")
        assert guard.lives
        assert lives(pids["b"])
        assert guard.snapshot()["guard"]["state"] == "stopping"  # type: ignore[index]
        assert guard.stop() == 0
        assert not guard.processes()


def test_what_ignores_sigterm_is_killed_after_its_time(tmp_path: Path) -> None:
    with Guard(tmp_path, [worker("a", python(DEAF), stop_timeout=0.2, working_dir=str(tmp_path))]) as guard:
        guard.start()
        pid = guard.until_running("a")["a"]
        guard.until((tmp_path / "deaf").exists, "it is deaf")
        assert guard.cli_json("stop", "a") == {"a": True}
        assert not lives(pid)
        assert guard.states() == {"a": "stopped"}
        assert guard.cli_json("stop", "a") == {"a": True}, "said again, it is still so"
        assert guard.cli_json("start", "a") == {"a": True}
        guard.until_running("a")


def test_what_an_operator_stopped_stays_down_also_after_a_crash_of_the_guard(tmp_path: Path) -> None:
    with Guard(tmp_path, [worker("a"), worker("b")]) as guard:
        guard.start()
        pids = guard.until_running("a", "b")
        guard.ask("stop", ids=["a"], force=False)
        os.kill(pids["b"], signal.SIGKILL)
        guard.until_recovered()
        guard.until_running("b")
        assert guard.states()["a"] == "stopped"
        guard.kill()
        guard.start()
        guard.until_running("b")
        assert guard.states()["a"] == "stopped"


def test_a_recovery_that_leads_nowhere_gives_up_with_an_exit_code_and_a_reason(tmp_path: Path) -> None:
    crashes = worker("a", python("raise SystemExit(3)"), max_restarts=2)
    with Guard(tmp_path, [crashes, worker("b")]) as guard:
        guard.start()
        assert guard.wait() == 1
        assert "recovery gave up: a failed again" in guard.said
        assert "failed again after 2 restarts within 300 s (max_restarts)" in guard.said
        assert not guard.processes()
        assert guard.state()["gave_up"]["exit_code"] == 1


def test_apart_what_crashes_for_ever_backs_off_and_is_left_out_while_the_others_go_on(tmp_path: Path) -> None:
    crashes = worker("a", python("raise SystemExit(3)"), max_restarts=3)
    with Guard(tmp_path, [crashes, worker("b")], recovery=APART) as guard:
        guard.start()
        b = guard.until_running("b")["b"]
        guard.until(lambda: guard.states().get("a") == "exhausted", "a is given up")
        shown = guard.workers()
        assert "failed again after 3 restarts" in " ".join(shown["a"]["reasons"])
        starts = [event["at"] for event in guard.events("started", "a")]
        assert len(starts) == 4
        assert starts[2] - starts[1] >= 0.03, "the second restart waits"
        assert shown["b"]["pid"] == b
        assert guard.stop() == 0


def test_a_guard_ends_with_0_when_every_worker_has_finished(tmp_path: Path) -> None:
    with Guard(tmp_path, [worker("a", "true"), worker("b", "true")]) as guard:
        guard.start()
        assert guard.wait() == 0
        assert "every worker has finished" in guard.said


def test_a_guard_after_a_killed_one_ends_also_when_a_worker_had_finished_before(tmp_path: Path) -> None:
    waits = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)"
    workers = [worker("short", "true"), worker("long", python(waits), working_dir=str(tmp_path))]
    with Guard(tmp_path, workers, recovery=APART) as guard:
        guard.start()
        guard.until_running("long")
        guard.until(lambda: guard.state()["workers"]["short"]["left_out"], "short has finished")
        guard.kill()
        guard.start()
        guard.until_running("long")
        (tmp_path / "go").touch()
        assert guard.wait() == 0
        assert "every worker has finished" in guard.said


@pytest.mark.parametrize("recovers", [True, False])
def test_a_worker_that_cannot_start_at_all_does_not_keep_the_guard(tmp_path: Path, recovers: bool) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    recovery = {**APART, "enable_auto_recovery": recovers, "max_recovery_attempts": 1}
    with Guard(tmp_path, [worker("a", [str(script)]), worker("b", "true")], recovery=recovery) as guard:
        guard.start()
        assert guard.wait() == 1
        assert "a stays out: could not be started" in guard.said
        assert "failed for good: a" in guard.said
        assert "Traceback" not in guard.said


def test_without_recovery_a_guard_ends_though_its_worker_would_always_run_again(tmp_path: Path) -> None:
    entry = worker("a", "true", restart="always")
    with Guard(tmp_path, [entry], recovery={"enable_auto_recovery": False}) as guard:
        guard.start()
        assert guard.wait() == 0


def test_a_guard_ends_with_1_when_what_never_restarts_has_failed(tmp_path: Path) -> None:
    with Guard(
        tmp_path, [worker("a", "false", restart="never"), worker("b", "true")], recovery=APART
    ) as guard:
        guard.start()
        assert guard.wait() == 1
        assert "failed for good: a" in guard.said


def test_restart_always_runs_again_after_a_clean_end_and_disturbs_nobody(tmp_path: Path) -> None:
    counts = "open('runs', 'a').write('x\\n')"
    entry = worker("a", python(counts), restart="always", working_dir=str(tmp_path), max_restarts=1000)
    with Guard(tmp_path, [entry, worker("b")]) as guard:
        guard.start()
        b = guard.until_running("b")["b"]
        guard.until(lambda: len(lines(tmp_path / "runs")) >= 3, "a has run three times")
        assert guard.pids()["b"] == b


def test_workers_start_after_those_they_depend_on_also_in_a_recovery(tmp_path: Path) -> None:
    workers = [worker("a", depends_on=["b"]), worker("b", depends_on=["c"]), worker("c")]
    with Guard(tmp_path, workers) as guard:
        guard.start()
        pids = guard.until_running("a", "b", "c")
        os.kill(pids["a"], signal.SIGKILL)
        guard.until_recovered()
        assert [event["worker_id"] for event in guard.events("started")] == ["c", "b", "a"] * 2


READY_LATE = """
import os, socket, time
while not os.path.exists("go"): time.sleep(0.01)
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(os.environ["NOTIFY_SOCKET"])
s.send(b"READY=1")
time.sleep(1000)
"""


def test_what_depends_on_a_worker_waits_until_that_is_ready(tmp_path: Path) -> None:
    workers = [
        worker("a", python(READY_LATE), worker_type="notify", working_dir=str(tmp_path)),
        worker("b", depends_on=["a"]),
    ]
    with Guard(tmp_path, workers) as guard:
        guard.start()
        guard.until(lambda: guard.pids().get("a"), "a has started")
        guard.until(lambda: guard.workers()["a"]["health"] == "starting", "a is not ready")
        assert not guard.events("started", "b")
        assert guard.workers()["b"]["reasons"] == ["waits for a, not ready yet"]
        (tmp_path / "go").touch()
        guard.until_running("a", "b")


def test_a_second_guard_on_the_same_state_is_refused_and_harms_nobody(tmp_path: Path) -> None:
    with Guard(tmp_path, [worker("a")]) as guard:
        guard.start()
        pids = guard.until_running("a")
        second = guard.run_another()
        assert second.returncode == 1
        assert f"in use by another guard (pid {guard.pid})" in second.stderr
        assert "Traceback" not in second.stderr
        assert guard.until_running("a") == pids


def test_what_a_worker_leaves_behind_is_swept_before_it_starts_again(tmp_path: Path) -> None:
    forks = (
        "import os, subprocess, sys, time\n"
        "p = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "open('left', 'a').write(f'{p.pid}\\n')\n"
        "time.sleep(1000) if os.path.exists('again') else sys.exit(3)\n"
    )
    with Guard(tmp_path, [worker("a", python(forks), working_dir=str(tmp_path), max_restarts=100)]) as guard:
        guard.start()
        guard.until(lambda: len(lines(tmp_path / "left")) >= 2, "it has started again")
        (tmp_path / "again").touch()
        guard.until_running("a")

        def only_the_last_lives() -> bool:
            *gone, last = map(int, lines(tmp_path / "left"))
            return lives(last) and not any(map(lives, gone))

        guard.until(only_the_last_lives, "nothing of the dead ones lives")


def test_a_worker_that_floods_stdout_harms_nobody(tmp_path: Path) -> None:
    floods = "import sys, time\nwhile True: sys.stdout.write(('x' * 99 + '\\n') * 200); time.sleep(0.001)"
    rotation = {"max_bytes": 1 << 20, "backups": 1}
    with Guard(
        tmp_path, [worker("a", python(floods), log_rotation=rotation), worker("b")], recovery=APART
    ) as guard:
        guard.start()
        pids = guard.until_running("a", "b")
        log = guard.log("a")
        guard.until(log.with_name(log.name + ".1").exists, "its log has begun anew")
        os.kill(pids["b"], signal.SIGKILL)
        guard.until_recovered()
        assert guard.until_running("a", "b")["a"] == pids["a"]


def test_a_broken_state_file_is_set_aside_and_living_workers_are_still_adopted(tmp_path: Path) -> None:
    with Guard(tmp_path, [worker("a")]) as guard:
        guard.start()
        pids = guard.until_running("a")
        guard.kill()
        guard.state_file.write_text("{")
        guard.start()
        assert guard.until_running("a") == pids
        assert "begun anew" in guard.said
        assert guard.state_file.with_name("state.json.broken-1").read_text() == "{"


def test_a_state_file_of_a_newer_version_is_refused_and_kept(tmp_path: Path) -> None:
    with Guard(tmp_path, [worker("a")]) as guard:
        guard.state_file.write_text('{"version": 999}')
        guard.start()
        assert guard.wait() == 1
        assert "newer ProcGuard" in guard.said
        assert "Traceback" not in guard.said
        assert guard.state_file.read_text() == '{"version": 999}'


def test_guards_whose_state_files_stand_in_one_folder_share_nothing(tmp_path: Path) -> None:
    """Not even where the names differ in what looks like an ending alone, and the workers not at all."""
    with Guard(tmp_path / "x", []) as one, Guard(tmp_path / "y", []) as other:
        for guard, name in ((one, "job.1"), (other, "job.2")):
            guard.state_file = tmp_path / name
            guard.write([worker("a", ["sh", "-c", f"echo {name}; sleep 1000"], tasks=[name])])
        one.start()
        first = one.until_running("a")
        other.start()
        second = other.until_running("a")
        assert first["a"] != second["a"], "the other guard's worker is not adopted"
        for guard, pids in ((one, first), (other, second)):
            name = guard.state_file.name
            environ = environ_of(pids["a"])
            assert json.loads(environ["PROCGUARD_TASKS"]) == [name]
            tasks = Path(environ["PROCGUARD_TASKS_FILE"])
            assert tasks.parent.parent == guard.own_folder
            assert [task["task_id"] for task in json.loads(tasks.read_text())] == [name]
            guard.until(partial(lines, guard.log("a")), "it has written")
            assert lines(guard.log("a")) == [name]
            [record] = (guard.own_folder / "processes").iterdir()
            assert json.loads(record.read_text())["pid"] == pids["a"]
        assert one.stop() == 0
        assert lives(second["a"]), "one guard's end is not the other's"
        assert other.stop() == 0


def test_a_pid_that_is_another_process_by_now_is_not_touched(tmp_path: Path) -> None:
    with Guard(tmp_path, [worker("a")]) as guard, Guard(tmp_path / "other", [worker("x")]) as other:
        guard.start()
        pid = guard.until_running("a")["a"]
        guard.kill()
        os.kill(pid, signal.SIGKILL)
        guard.until(lambda: not lives(pid), "a is gone")
        other.start()
        stranger = other.until_running("x")["x"]
        [record] = list((guard.own_folder / "processes").iterdir())
        content = json.loads(record.read_text())
        record.write_text(json.dumps({**content, "pid": stranger}))
        guard.start()
        assert guard.until_running("a")["a"] not in (pid, stranger)
        assert guard.stop() == 0
        assert lives(stranger)


def test_without_standard_streams_nothing_is_written_where_it_does_not_belong(tmp_path: Path) -> None:
    with Guard(tmp_path, [worker("a")]) as guard:
        guard.start(at=["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"])
        pids = guard.until_running("a")
        os.kill(pids["a"], signal.SIGKILL)
        guard.until_recovered()
        where = {os.readlink(f"/proc/{guard.pid}/fd/{descriptor}") for descriptor in (0, 1, 2)}
        assert where == {"/dev/null"}
        assert guard.stop() == 0


def test_a_guard_whose_lock_is_removed_says_so(tmp_path: Path) -> None:
    with Guard(tmp_path, [worker("a")]) as guard:
        guard.environ = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "300000"}  # it looks more often then
        guard.start()
        guard.until_running("a")
        guard.state_file.with_name("state.json.lock").unlink()
        guard.until(lambda: f"end this one with `kill {guard.pid}`" in guard.said, "it says so")
        assert guard.stop() == 0
        assert guard.said.count("was removed") == 1


def test_systemd_hears_that_it_is_ready_alive_and_stopping(tmp_path: Path) -> None:
    path = tmp_path / "systemd.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(60)
        with Guard(tmp_path, [worker("a")]) as guard:
            guard.environ = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "300000"}
            guard.start()
            assert _word(systemd).startswith(b"READY=1\n")
            assert [systemd.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            pid = guard.until_running("a")["a"]
            assert environ_of(pid)["NOTIFY_SOCKET"] != str(path), "that one is the guard's alone"
            assert guard.stop() == 0
            assert _word(systemd).startswith(b"STOPPING=1\n")


def _word(systemd: socket.socket) -> bytes:
    """The next that is said besides being alive."""
    while (heard := systemd.recv(4096)) == b"WATCHDOG=1":
        pass
    return heard


def test_under_nohup_the_end_of_the_terminal_ends_nothing(tmp_path: Path) -> None:
    with Guard(tmp_path, [worker("a")]) as guard:
        guard.start(at=["nohup"])
        pids = guard.until_running("a")
        guard.signal(signal.SIGHUP)
        assert guard.until_running("a") == pids
        assert guard.stop() == 0
        assert "Guard stops: by SIGTERM" in guard.said


def test_a_guard_that_ignores_signals_has_workers_that_hear_them(tmp_path: Path) -> None:
    with Guard(tmp_path, [worker("a", stop_signal="SIGINT", stop_timeout=1000)]) as guard:
        guard.start(at=["sh", "-c", 'trap "" INT QUIT HUP; exec "$@"', "sh"])
        pid = guard.until_running("a")["a"]
        ignored = next(line for line in lines(Path(f"/proc/{pid}/status")) if line.startswith("SigIgn"))
        # Those that can be ignored by a program: two of the numbers are glibc's own.
        known = sum(1 << (number - 1) for number in signal.valid_signals())
        assert int(ignored.split()[1], 16) & known == 0
        guard.signal(signal.SIGINT)
        assert guard.ask("stop", ids=["a"], force=False) == {"a": True}
        assert guard.workers()["a"]["last_exit"]["kind"] == "operator"
        assert guard.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_the_end_of_the_terminal_and_ctrl_c_end_it_in_good_order(
    tmp_path: Path, number: signal.Signals
) -> None:
    with Guard(tmp_path, [worker("a")]) as guard:
        guard.start()
        guard.until_running("a")
        guard.signal(number)
        assert guard.wait() == 0
        assert f"by {number.name}" in guard.said
        assert not guard.processes()


def test_a_worker_that_was_ready_under_an_earlier_guard_is_not_asked_again(tmp_path: Path) -> None:
    ready = NOTIFIES.replace("WATCHDOG=1", "STATUS=x")
    entry = worker("a", python(ready), worker_type="notify", start_period=0.5)
    with Guard(tmp_path, [entry, worker("b", depends_on=["a"])], recovery=APART) as guard:
        guard.start()
        pids = guard.until_running("a", "b")
        guard.until(lambda: guard.workers()["a"]["health"] == "healthy", "it is ready")
        guard.kill()
        os.kill(pids["b"], signal.SIGKILL)
        guard.start()
        guard.until(
            lambda: guard.snapshot() and guard.workers()["a"]["health"] != "starting", "its time is over"
        )
        assert guard.until_running("a", "b")["a"] == pids["a"]
        assert guard.workers()["a"]["health"] == "healthy"
