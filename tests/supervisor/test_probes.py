"""What is seen of real processes: their use of CPU, their output, their family; with and without psutil."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from procguard.supervisor import probes
from tests.supervisor.programs import SPIN, WAIT, no_descriptor_left, process, until


def cpu_s(probe: probes.Probe, *, tree: bool = False) -> float:
    usage = probe.tree_usage() if tree else probe.usage()
    assert usage is not None
    return usage.cpu_s


def test_cpu_and_memory_of_one_process() -> None:
    with process(SPIN) as busy, process(WAIT) as idle:
        spinning, waiting = probes.Probe(busy.pid), probes.Probe(idle.pid)
        until(lambda: cpu_s(spinning) > 0.1)
        until(lambda: cpu_s(waiting) > 0.0 or probes.state_letter(idle.pid) == "S")
        before = cpu_s(waiting)
        until(lambda: cpu_s(spinning) > 0.2)
        assert cpu_s(waiting) <= before + 0.02
        usage = waiting.usage()
        assert usage is not None
        assert 1 << 20 < usage.memory_bytes < probes.MEMORY_BYTES
        spinning.close()
        waiting.close()
        waiting.close()


def test_the_tree_has_its_childrens_cpu_and_the_root_has_it_not() -> None:
    with process(f"{sys.executable} -S -c '{SPIN}' & wait", python=False) as shell:
        probe = probes.Probe(shell.pid)
        until(lambda: cpu_s(probe, tree=True) > 0.2)
        assert cpu_s(probe) < 0.1
        probe.close()


def test_the_cpu_of_children_that_have_ended_is_the_roots() -> None:
    busy = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    with process(f"{sys.executable} -S -c '{busy}'; read x", python=False) as shell:
        probe = probes.Probe(shell.pid)
        until(lambda: cpu_s(probe) >= 0.2)
        probe.close()


def test_a_process_that_has_gone_is_not_seen_and_no_later_one_for_it() -> None:
    with process(WAIT) as gone:
        probe = probes.Probe(gone.pid)
        gone.kill()
        gone.wait()
        assert probe.usage() is None
        assert probe.tree_usage() is None
        probe.close()
    assert probes.Probe(gone.pid).usage() is None
    assert probes.state_letter(gone.pid) is None
    assert probes.family(gone.pid) == [gone.pid]
    assert probes.threads(gone.pid) == []


def test_output_moves_with_the_files_it_is_written_to(tmp_path: Path) -> None:
    program = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    with process(program, output=tmp_path / "log") as echo:
        probe = probes.Probe(echo.pid)
        before = probe.tree_usage()
        assert echo.stdin is not None
        echo.stdin.write(b"hello\n")
        echo.stdin.flush()
        until(lambda: (tmp_path / "log").stat().st_size == 6)
        after = probe.tree_usage()
        assert before is not None
        assert after is not None
        assert before.output != after.output
        probe.close()


def test_output_that_goes_to_no_file_is_seen_in_the_bytes_written() -> None:
    program = "import os, sys\nfor line in sys.stdin: os.write(1, line.encode())"
    with process(program) as echo:
        probe = probes.Probe(echo.pid)
        before = probe.tree_usage()
        assert echo.stdin is not None
        echo.stdin.write(b"hello\n")
        echo.stdin.flush()

        def moved() -> bool:
            after = probe.tree_usage()
            return before is not None and after is not None and after.output != before.output

        until(moved)
        probe.close()


def test_a_process_belongs_to_the_worker_among_its_ancestors() -> None:
    with process("sleep 1000 & wait", python=False) as shell, process(WAIT) as stranger:
        until(lambda: len(probes.family(shell.pid)) == 2)
        child = probes.family(shell.pid)[1]
        workers = {shell.pid: "w"}
        assert probes.owner_of(child, workers) == probes.owner_of(shell.pid, workers) == "w"
        assert probes.owner_of(stranger.pid, workers) is None
        assert probes.owner_of(os.getpid(), workers) is None
        assert probes.owner_of(1, workers) is None
        assert probes.owner_of(shell.pid, {}) is None


def test_without_a_descriptor_nothing_is_known_and_nothing_raised() -> None:
    with process(WAIT) as worker, process(WAIT) as other, no_descriptor_left():
        assert probes.owner_of(other.pid, {worker.pid: "w"}) is None
        assert probes.state_letter(worker.pid) is None
        assert probes.family(worker.pid) == [worker.pid]
        assert probes.Probe(worker.pid).usage() is None


DAEMON = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        sys.stdin.read()
    os._exit(0)
os.wait()
sys.stdin.read()
"""


def test_a_daemon_that_left_its_tree_and_session_is_known_by_its_start_token(tmp_path: Path) -> None:
    log = tmp_path / "log"
    token = {"PROCGUARD_START": "a1b2"}
    with (
        process(DAEMON, env=token, output=log) as worker,
        process(WAIT, env=token | {"PROCGUARD_START": "a1b3"}) as other,
    ):
        until(lambda: log.read_text().endswith("\n"))
        daemon = int(log.read_text())
        until(lambda: probes.family(worker.pid) == [worker.pid])
        assert probes.owner_of(daemon, {other.pid: "other", worker.pid: "w"}) == "w"
        assert probes.owner_of(daemon, {other.pid: "other"}) is None
        os.kill(daemon, signal.SIGKILL)


def test_threads_are_shown_with_what_they_sleep_in() -> None:
    program = (
        f"import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n{WAIT}"
    )
    with process(program) as worker:
        until(lambda: len(probes.threads(worker.pid)) == 2)
        first = probes.threads(worker.pid)[0]
        assert first["thread"] == worker.pid
        assert first["state"] in ("S", "R")


def test_a_signal_counts_as_expected_only_while_it_is_caught() -> None:
    program = f"import signal; signal.signal(signal.SIGUSR2, lambda *_: None)\n{WAIT}"
    with process(program) as worker:
        until(lambda: probes.catches(worker.pid, signal.SIGUSR2))
        assert not probes.catches(worker.pid, signal.SIGUSR1)
        worker.kill()
        worker.wait()
        assert not probes.catches(worker.pid, signal.SIGUSR2)


def test_what_the_machine_has() -> None:
    seen = probes.machine()
    assert seen is not None
    assert 0 < seen["memory_available_bytes"] <= seen["memory_bytes"]
    assert probes.blind_spots() == []
    json.dumps(seen)


WITHOUT_PSUTIL = """
import json, sys
sys.modules["psutil"] = None
from procguard.supervisor import probes
import os
probe = probes.Probe(os.getpid())
print(json.dumps([probes.blind_spots(), probes.machine(), probe.usage().memory_bytes > 0]))
"""


def test_without_psutil_only_the_machine_is_not_seen() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_PSUTIL], capture_output=True, check=True, timeout=60
    )
    spots, machine, sees = json.loads(answer.stdout)
    assert (machine, sees, len(spots)) == (None, True, 1)
    assert "psutil is not installed" in spots[0]


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_HAS_PROC", False)


@pytest.mark.usefixtures("no_proc")
def test_psutil_stands_in_for_proc() -> None:
    with process(f"{sys.executable} -S -c '{SPIN}' & wait", python=False) as shell:
        probe = probes.Probe(shell.pid)
        probe.close()
        until(lambda: cpu_s(probe, tree=True) > 0.1)
        assert probe.usage() is not None
    assert probe.usage() is None


@pytest.mark.usefixtures("no_proc")
def test_without_proc_and_psutil_nothing_is_seen_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_psutil", None)
    probe = probes.Probe(os.getpid())
    probe.close()
    assert probe.usage() is None
    assert len(probes.blind_spots()) == 2
