"""Workers as real processes: started, ended by all sorts of hands, stopped and swept."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from procguard.errors import StateError, UsageError
from procguard.supervisor import life, procfs
from procguard.supervisor.manager import (
    ExitKind,
    ProcessManager,
    StopReason,
    WorkerEvent,
    WorkerStarted,
    WorkerState,
    WorkerUnkillable,
)
from procguard.supervisor.process import Child
from tests.supervisor.processes import FOR_EVER, IGNORES_TERM, Heard, lives, living_of, pids_in, python, until


def pid_of(manager: ProcessManager, worker_id: str = "w0") -> int:
    pid = manager.get_worker_status(worker_id).pid
    assert pid is not None
    return pid


def printed(manager: ProcessManager, text: str, worker_id: str = "w0") -> None:
    until(lambda: text.encode() in manager.tail(worker_id, stream="stdout"), f"{text!r} from {worker_id}")


# --- starting and ending ---


def test_a_kill_is_noticed_and_the_next_start_is_another_process(
    manager: ProcessManager, heard: Heard
) -> None:
    manager.register_worker_config("w0", {"command": "sleep 1000"})
    assert manager.start_worker("w0")
    assert manager.start_worker("w0")
    first = pid_of(manager)
    os.kill(first, signal.SIGKILL)
    exit_ = heard.end_of("w0")
    assert (exit_.kind, exit_.signal, exit_.text) == (ExitKind.SIGNAL, "SIGKILL", "killed by SIGKILL")
    assert manager.start_worker("w0")
    status = manager.get_worker_status("w0")
    assert status["pid"] != first
    assert (status["state"], status["restarts"], status.last_exit) == (WorkerState.RUNNING, 1, exit_)
    assert dict(status)["adopted"] is False
    assert heard.starts_of("w0") == 2


@pytest.mark.parametrize(
    ("command", "kind", "state"),
    [("true", ExitKind.CLEAN, WorkerState.FINISHED), ("sh -c 'exit 3'", ExitKind.ERROR, WorkerState.FAILED)],
)
def test_it_ends_by_itself(
    manager: ProcessManager, heard: Heard, command: str, kind: ExitKind, state: WorkerState
) -> None:
    manager.register_worker_config("w0", {"command": command})
    manager.start_worker("w0")
    assert heard.end_of("w0").kind is kind
    until(lambda: manager.get_worker_status("w0").state is state, "its state")
    assert manager.get_worker_status("w0").pid is None


def test_a_stop_is_the_operators_and_says_why(manager: ProcessManager, heard: Heard) -> None:
    manager.register_worker_config("w0", {"command": FOR_EVER})
    manager.start_worker("w0")
    pid = pid_of(manager)
    assert manager.stop_worker("w0", reason=StopReason.WATCHDOG, because="no heartbeat for 10.0 s")
    assert not lives(pid)
    exit_ = heard.end_of("w0")
    assert (exit_.kind, exit_.text) == (ExitKind.WATCHDOG, "hung: no heartbeat for 10.0 s")
    assert manager.stop_worker("w0")


def test_who_ignores_sigterm_is_killed(manager: ProcessManager, heard: Heard) -> None:
    manager.register_worker_config("w0", {"command": IGNORES_TERM, "stop_timeout": 0.2})
    manager.start_worker("w0")
    printed(manager, "deaf")
    pid = pid_of(manager)
    assert manager.stop_worker("w0")
    assert not lives(pid)
    exit_ = heard.end_of("w0")
    assert (exit_.kind, exit_.signal) == (ExitKind.OPERATOR, "SIGKILL")


def test_force_does_not_wait(manager: ProcessManager) -> None:
    manager.register_worker_config("w0", {"command": IGNORES_TERM, "stop_timeout": 1000})
    manager.start_worker("w0")
    printed(manager, "deaf")
    patient = threading.Thread(target=manager.stop_worker, args=("w0",))
    patient.start()
    until(lambda: manager.get_worker_status("w0").state is WorkerState.STOPPING, "the first stop")
    assert manager.stop_worker("w0", force=True)
    patient.join()


def test_a_stopped_process_hears_the_stop(manager: ProcessManager) -> None:
    manager.register_worker_config("w0", {"command": FOR_EVER, "stop_timeout": 1000})
    manager.start_worker("w0")
    assert manager.kill_worker("w0", "STOP")
    assert manager.stop_worker("w0")


def test_a_signal_from_an_operator_counts_as_its_own_end(manager: ProcessManager, heard: Heard) -> None:
    manager.register_worker_config("w0", {"command": FOR_EVER})
    assert not manager.kill_worker("w0", 9)
    manager.start_worker("w0")
    assert manager.kill_worker("w0", "SIGUSR1")
    assert heard.end_of("w0").text == "killed by SIGUSR1"
    with pytest.raises(UsageError, match="signal: 'SIGNONE' is no signal"):
        manager.kill_worker("w0", "SIGNONE")


def test_many_start_and_stop_together(manager: ProcessManager) -> None:
    ids = [f"w{number}" for number in range(40)]
    for worker_id in ids:
        manager.register_worker_config(worker_id, {"command": FOR_EVER})
        assert manager.start_worker(worker_id)
    pids = [pid_of(manager, worker_id) for worker_id in ids]
    assert manager.stop_all_workers(reason=StopReason.RECOVERY) == dict.fromkeys(ids, True)
    assert not any(map(lives, pids))


def test_the_healthy_are_those_that_run_or_were_stopped_with_all(
    manager: ProcessManager, heard: Heard
) -> None:
    for worker_id in ("runs", "crashed", "by_hand", "never", "failed"):
        manager.register_worker_config(worker_id, {"command": FOR_EVER})
    for worker_id in ("runs", "crashed", "by_hand", "failed"):
        manager.start_worker(worker_id)
    manager.stop_worker("by_hand")
    manager.kill_worker("crashed", 9)
    heard.end_of("crashed")
    manager.stop_all_workers()
    assert manager.restart_healthy_workers(exclude_ids=["failed"]) == {"runs": True}
    before = pid_of(manager, "runs")
    assert manager.restart_healthy_workers() == {"runs": True, "failed": True}
    assert pid_of(manager, "runs") != before
    assert manager.restart_worker("never")


def test_a_delayed_start_can_be_cancelled(manager: ProcessManager, heard: Heard) -> None:
    manager.register_worker_config("w0", {"command": FOR_EVER})
    assert manager.start_worker("w0", delay_s=1000)
    status = manager.get_worker_status("w0")
    assert status.state is WorkerState.WAITING
    assert status.next_start_at is not None
    assert manager.stop_worker("w0")
    assert manager.get_worker_status("w0").state is WorkerState.STOPPED
    assert manager.start_worker("w0", delay_s=0.01)
    until(lambda: heard.starts_of("w0"), "the delayed start")
    with pytest.raises(UsageError, match="delay_s"):
        manager.start_worker("w0", delay_s=float("nan"))


@pytest.mark.parametrize("seed", [1, 2])
def test_several_threads_ask_at_once(manager: ProcessManager, seed: int) -> None:
    print(f"seed {seed}")
    manager.register_worker_config("w0", {"command": FOR_EVER})
    seen: list[tuple[int, list[int]]] = []

    def look(event: WorkerEvent) -> None:
        if isinstance(event, WorkerStarted):
            seen.append((event.pid, living_of(manager, "w0")))

    def ask(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        for _ in range(8):
            if chance.random() < 0.5:
                assert manager.start_worker("w0")
            else:
                assert manager.stop_worker("w0", force=chance.random() < 0.5)

    manager.subscribe(look)
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert seen
    assert all(living == [pid] for pid, living in seen), seen
    assert manager.stop_worker("w0")


def test_one_that_outlives_sigkill_is_reported_and_not_waited_for(
    manager: ProcessManager, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.register_worker_config("w0", {"command": FOR_EVER})
    manager.start_worker("w0")
    with monkeypatch.context() as hard:  # as in a system call that does not return
        hard.setattr(life, "KILL_WAIT_S", 0.05)
        hard.setattr(Child, "kill_group", lambda child: None)
        assert not manager.stop_worker("w0", force=True)
        assert not manager.start_worker("w0")
    status = manager.get_worker_status("w0")
    assert (status.state, status.pid) == (WorkerState.UNKILLABLE, pid_of(manager))
    assert any(isinstance(event, WorkerUnkillable) for event in heard.events)
    os.kill(pid_of(manager), signal.SIGKILL)
    assert heard.end_of("w0").kind is ExitKind.OPERATOR
    assert manager.start_worker("w0")


IGNORES_SIGCHLD = """
import signal, sys, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from procguard.supervisor.manager import ProcessManager, WorkerEnded
with ProcessManager() as manager:
    ends = []
    manager.subscribe(lambda event: ends.append(event) if isinstance(event, WorkerEnded) else None)
    manager.register_worker_config("w0", {"command": ["sh", "-c", "exit 3"]})
    manager.start_worker("w0")
    while not ends:
        time.sleep(0.005)
    assert manager.start_worker("w0")
    print(ends[0].exit.kind.value)
"""


def test_a_program_that_ignores_its_children_still_hears_of_ours() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", IGNORES_SIGCHLD], stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    assert ran.stdout.strip() in ("error", "unknown")  # an older kernel does not keep the status


def test_a_fork_has_no_share_in_it(manager: ProcessManager) -> None:
    manager.register_worker_config("w0", {"command": FOR_EVER})
    manager.start_worker("w0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: it is what we try
        child = os.fork()
    if child == 0:
        try:
            manager.stop_worker("w0")
        except UsageError as error:
            os._exit(3 if "forked" in str(error) else 4)
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert lives(pid_of(manager))


def test_another_configuration_counts_from_the_next_start_on(manager: ProcessManager) -> None:
    manager.register_worker_config("w0", {"command": FOR_EVER})
    manager.start_worker("w0")
    before = manager.get_worker_status("w0")
    manager.register_worker_config(
        "w0", {"command": "sleep 999", "log_file": f"{manager.state_dir}/other.log"}
    )
    assert manager.get_worker_status("w0") == before
    assert manager.restart_worker("w0")
    assert manager.get_worker_status("w0").log_file == f"{manager.state_dir}/other.log"
    command = Path(f"/proc/{pid_of(manager)}/cmdline")
    until(lambda: b"999" in command.read_bytes(), "the other command")


# --- what it leaves behind ---


def test_a_childs_child_that_holds_stdout_delays_nothing(
    manager: ProcessManager, heard: Heard, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    command = ["sh", "-c", f"setsid sleep 1000 & echo $! > {pids}; echo bye; exit 3"]
    manager.register_worker_config("w0", {"command": command})
    manager.start_worker("w0")
    assert heard.end_of("w0").code == 3
    (child,) = pids_in(pids)
    assert manager.stop_worker("w0")
    assert not lives(child)
    assert manager.tail("w0", stream="stdout") == b"bye\n"


ESCAPES = {
    "its own group": "set -m; sleep 1000 & echo $! >> {pids}",
    "a session of its own": "setsid sleep 1000 & echo $! >> {pids}",
    "twice removed": "setsid sh -c 'sleep 1000 & echo $! >> {pids}'",
    "without its environment": "env -i sleep 1000 & echo $! >> {pids}",
}


@pytest.mark.parametrize("escape", ESCAPES)
def test_what_escapes_is_swept(manager: ProcessManager, heard: Heard, tmp_path: Path, escape: str) -> None:
    pids = tmp_path / "pids"
    script = ESCAPES[escape].format(pids=pids) + "; echo ready; sleep 1000"
    manager.register_worker_config("w0", {"command": ["sh", "-c", script]})
    manager.start_worker("w0")
    printed(manager, "ready")
    (child,) = pids_in(pids)
    os.kill(pid_of(manager), signal.SIGKILL)
    heard.end_of("w0")
    assert manager.start_worker("w0")
    assert not lives(child)


def test_one_that_goes_into_the_background_is_told_that_it_must_not(
    manager: ProcessManager, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    manager.register_worker_config("w0", {"command": ["sh", "-c", "setsid sleep 1000 & exit 0"]})
    manager.start_worker("w0")
    assert heard.end_of("w0").kind is ExitKind.CLEAN
    assert manager.stop_worker("w0")
    assert "w0 left 1 processes behind; they were ended (a worker must run in the foreground)" in caplog.text


def test_the_program_behind_a_shell_gets_the_stop_signal_and_its_time(
    manager: ProcessManager, tmp_path: Path
) -> None:
    program = "trap 'sleep 0.2; echo saved; exit 0' TERM; echo ready; while :; do sleep 0.02; done"
    script = f'sh -c "{program}"; true'
    manager.register_worker_config("w0", {"command": ["sh", "-c", script]})
    manager.start_worker("w0")
    printed(manager, "ready")
    assert manager.stop_worker("w0")
    assert b"saved" in manager.tail("w0", stream="stdout")


def test_a_child_that_ignores_the_stop_goes_with_the_deadline(
    manager: ProcessManager, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    script = f"sh -c \"trap '' TERM; echo \\$\\$ > {pids}; while :; do sleep 0.05; done\"; true"
    manager.register_worker_config("w0", {"command": ["sh", "-c", script], "stop_timeout": 0.3})
    manager.start_worker("w0")
    (child,) = pids_in(pids)
    assert manager.stop_worker("w0")
    assert not lives(child)


def test_the_programs_own_children_stay_its_own(manager: ProcessManager, heard: Heard) -> None:
    command = ["sh", "-c", "exit 7"]
    mine = [subprocess.Popen(command, start_new_session=own) for own in (False, True)]
    living = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    for child in mine:
        until(lambda pid=child.pid: not lives(pid), "a zombie")  # type: ignore[misc]
    manager.register_worker_config("w0", {"command": "true"})
    manager.start_worker("w0")
    heard.end_of("w0")
    assert manager.stop_worker("w0")
    assert manager._around.loop.ask(manager._mind_orphans)
    assert manager.stop_worker("w0")
    survived = lives(living.pid)
    living.kill()
    assert [child.wait(5) for child in (*mine, living)] == [7, 7, -signal.SIGKILL]
    assert survived


def test_an_orphan_that_ends_does_not_stay_a_zombie(manager: ProcessManager, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"setsid sh -c 'sleep 0.01 & echo $! > {pids}'; sleep 1000"
    manager.register_worker_config("w0", {"command": ["sh", "-c", script]})
    manager.start_worker("w0")
    (orphan,) = pids_in(pids)

    def gone() -> bool:
        manager._around.loop.ask(manager._mind_orphans)
        return procfs.read_stat(orphan) is None

    until(gone, "the zombie reaped")


# --- what it is given ---


def test_environment_and_directory(
    manager: ProcessManager, heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "the guard's own")
    monkeypatch.setenv("A", "inherited")
    monkeypatch.setenv("B", "inherited")
    monkeypatch.setenv(procfs.START_VARIABLE, "above")
    script = "echo $A $B $C ${NOTIFY_SOCKET-none} $PROCGUARD_START; pwd; echo wrong >&2"
    manager.register_worker_config(
        "w0",
        {
            "command": ["sh", "-c", script],
            "working_dir": str(tmp_path),
            "env": {"B": "config", "C": "config"},
        },
    )
    manager.start_worker("w0", environment={"C": "start"})
    heard.end_of("w0")
    words, directory = manager.tail("w0", stream="stdout").decode().splitlines()
    assert words.split()[:4] == ["inherited", "config", "start", "none"]
    assert words.split()[4].startswith("above:")
    assert directory == str(tmp_path)
    assert manager.tail("w0") == b"wrong\n"
    status = manager.get_worker_status("w0")
    assert status.log_file == str(tmp_path / "state/logs/w0.log")
    assert status.error_file == str(tmp_path / "state/logs/w0.err")


def test_no_descriptor_of_ours_reaches_it(manager: ProcessManager, heard: Heard) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        code = (
            "import os; fds = map(int, os.listdir('/proc/self/fd')); "
            "print(sorted(fd for fd in fds if os.path.exists(f'/proc/self/fd/{fd}')))"
        )
        manager.register_worker_config("w0", {"command": python(code)})
        manager.start_worker("w0")
        heard.end_of("w0")
        assert manager.tail("w0", stream="stdout") == b"[0, 1, 2]\n"
    finally:
        os.close(read)
        os.close(write)


def test_the_pid_file_is_there_while_it_runs(manager: ProcessManager, tmp_path: Path) -> None:
    pid_file = tmp_path / "w0.pid"
    manager.register_worker_config("w0", {"command": FOR_EVER, "pid_file": str(pid_file)})
    manager.start_worker("w0")
    assert pid_file.read_text() == f"{pid_of(manager)}\n"
    manager.stop_worker("w0")
    assert not pid_file.exists()
    assert list(tmp_path.glob("*.tmp")) == []


def test_the_tail_is_of_the_last_run(manager: ProcessManager, heard: Heard) -> None:
    manager.register_worker_config("w0", {"command": ["sh", "-c", "echo $RUN >&2"]})
    for run in ("one", "two"):
        manager.start_worker("w0", environment={"RUN": run})
        heard.end_of("w0")
    assert manager.tail("w0") == b"two\n"
    assert manager.tail("w0", 2) == b"o\n"


# --- mistakes ---


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"command": "no-such-program"}, "w0: command: 'no-such-program': not found in PATH="),
        ({"command": "./no-such-program"}, "w0: command: './no-such-program': no such file"),
        ({"command": "{tmp}/plain"}, "may not be executed; check its path and do chmod"),
        ({"command": "{tmp}/no_interpreter"}, "the interpreter that its first line names was not found"),
        ({"command": "{tmp}/nothing"}, "is no program; a script's first line must name its interpreter"),
        ({"command": "true", "working_dir": "{tmp}/missing"}, "/missing' is no directory; make it, or"),
        ({"command": "true", "pid_file": "{tmp}/missing/pid"}, "w0: pid_file: .* cannot be written"),
        ({"command": "true", "pid_file": "{tmp}"}, "w0: pid_file: .*it is a directory"),
        ({"command": "true", "log_file": "{tmp}/plain/log"}, "w0: log_file: .* cannot be written"),
        ({"command": "true", "log_file": "{tmp}"}, "w0: log_file: .* cannot be written"),
    ],
)
def test_a_start_that_cannot_be(
    manager: ProcessManager, heard: Heard, tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    for name, content in [("no_interpreter", "#!/no/such/thing\n"), ("nothing", "")]:
        (tmp_path / name).write_text(content or "\x7fnothing")
        (tmp_path / name).chmod(0o755)
    here = {
        key: value.format(tmp=tmp_path) if isinstance(value, str) else value for key, value in config.items()
    }
    manager.register_worker_config("w0", here)
    with pytest.raises(UsageError, match=said):
        manager.start_worker("w0")
    assert manager.get_worker_status("w0").state is WorkerState.FAILED
    assert not list((tmp_path / "state/processes").iterdir())
    assert manager.start_worker("w0", delay_s=0.001)
    assert heard.end_of("w0").kind is ExitKind.ERROR


@pytest.mark.parametrize(
    ("command", "path"),
    [("./script", None), ("bin/../script", None), ("script", "{tmp}"), ("script", "/nowhere:.")],
)
def test_a_bad_first_line_is_told_wherever_the_script_was_found(
    manager: ProcessManager, tmp_path: Path, command: str, path: str | None
) -> None:
    """Seen from its own folder, and by its own PATH: the guard's are others."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "script").write_text("#!/no/such/thing\n")
    (tmp_path / "script").chmod(0o755)
    env = {} if path is None else {"PATH": path.format(tmp=tmp_path)}
    manager.register_worker_config("w0", {"command": command, "working_dir": str(tmp_path), "env": env})
    with pytest.raises(UsageError, match="the interpreter that its first line names was not found"):
        manager.start_worker("w0")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "w0: command is missing"),
        ({"command": ["true", "a\0b"]}, "holds a NUL character"),
        ({"command": "true", "comand": 1}, "w0: comand = 1 is not a key of a worker; did you mean command"),
        ({"command": "true", "max_restarts": "many"}, "w0: max_restarts = 'many' must be a whole number"),
        ({"command": "true", "stop_signal": "SIGNONE"}, "w0: stop_signal = 'SIGNONE' is not a signal"),
        ({"command": "true", "worker_id": "w1"}, "w0: its settings say worker_id = 'w1'"),
    ],
)
def test_a_configuration_that_cannot_be(manager: ProcessManager, config: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        manager.register_worker_config("w0", config)
    assert manager.statuses() == {}


def test_a_worker_nobody_knows(manager: ProcessManager) -> None:
    manager.register_worker_config("w0", {"command": "true"})
    with pytest.raises(UsageError, match="'w1' is not registered; those that are: w0"):
        manager.start_worker("w1")


def test_one_that_runs_is_not_forgotten(manager: ProcessManager) -> None:
    manager.register_worker_config("w0", {"command": FOR_EVER})
    manager.start_worker("w0")
    with pytest.raises(UsageError, match="stop it before"):
        manager.unregister_worker("w0")
    manager.stop_worker("w0")
    manager.unregister_worker("w0")
    assert manager.statuses() == {}


def test_a_subscriber_must_not_wait_for_what_waits_for_it(manager: ProcessManager, heard: Heard) -> None:
    said: list[str] = []

    def too_bold(event: WorkerEvent) -> None:
        try:
            manager.stop_worker("w0")
        except UsageError as error:
            said.append(str(error))
            raise

    manager.subscribe(too_bold)
    manager.register_worker_config("w0", {"command": "true"})
    manager.start_worker("w0")
    heard.end_of("w0")
    until(lambda: said, "the subscriber's error")
    assert "have another thread do it" in said[0]


def test_a_state_dir_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="workers cannot be recorded here"):
        ProcessManager(tmp_path / "file" / "state")


# --- the end ---


def test_close_stops_all_and_can_be_said_twice(tmp_path: Path) -> None:
    manager = ProcessManager()
    folder = manager.state_dir
    manager.register_worker_config("w0", {"command": FOR_EVER})
    manager.start_worker("w0")
    pid = pid_of(manager)
    manager.close()
    manager.close()
    assert not lives(pid)
    assert not folder.exists()
    with pytest.raises(UsageError, match="closed"):
        manager.start_worker("w0")


def test_one_that_was_never_used_has_nothing_to_end() -> None:
    before = threading.active_count()
    ProcessManager().close()
    assert threading.active_count() == before
