"""The interface that users know, as they have written it down: each snippet runs, with real processes.

Not how well it is done, which other tests hold, but that these names, arguments and results are there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from procguard import ProcGuard
from procguard.adapters import (
    CheckpointAdapter,
    CommandAnswer,
    CommunicationAdapter,
    LighthouseAdapter,
    MockCommunicationAdapter,
    ZMQCommunicationAdapter,
)
from procguard.client import Heart
from procguard.config import ConfigLoader
from procguard.core import FailureHandler, HealthStatus, ProcessManager, ProcessMonitor, StateManager
from procguard.errors import ConfigError, UsageError
from tests.guards import DEADLINE_S, REPOSITORY, TICK_S, Guard, lives, python
from tests.lighthouse.running import free_ports

EVERY_KEY = """
workers:
  - worker_id: trainer-0
    command: sleep 1000
    working_dir: .
    env: {OMP_NUM_THREADS: "4"}
    pid_file: trainer-0.pid
    worker_type: process
    max_restarts: 3
    restart_delay: 2.0
    restart_window: 60
    restart_delay_max: 30
    restart: on_failure
    health_check_url: http://127.0.0.1:9/health
    health_check_interval: 5
    health_check_timeout: 2
    health_check_failures: 3
    stop_signal: SIGINT
    stop_timeout: 5
    start_period: 0.2
    depends_on: []
    tasks: [shard-0]
    takes_tasks: true
    log_file: trainer-0.log
    log_rotation: {max_bytes: 1048576, backups: 2}
    on_supervisor_death: kill
  - worker_id: trainer-1
    command: [sleep, "1000"]
    depends_on: [trainer-0]
monitoring:
  interval: 1.0
  heartbeat_timeout: 30.0
  zombie_detection: true
  cpu_threshold: 1.0
  memory_threshold: 1.0
recovery:
  enable_auto_recovery: true
  stop_all_on_failure: true
  task_reassignment: false
  recovery_timeout: 300
  max_recovery_attempts: 3
communication:
  adapter_type: mock
  adapter_config: {host: localhost, port_base: 5555, timeout: 5000}
state: {state_file: procguard_state.json, auto_save: true}
logging: {level: INFO, file: procguard.log, format: "%(asctime)s %(levelname)s %(message)s"}
web: {enabled: false, host: 127.0.0.1, port: 8080}
"""


def until(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(TICK_S)
    return found


@pytest.fixture
def manager() -> Iterator[ProcessManager]:
    with ProcessManager() as manager:
        yield manager


def written(folder: Path, text: str) -> Path:
    path = folder / "procguard_config.yaml"
    path.write_text(text)
    return path


# --- ProcGuard


def test_procguard_step_by_step(tmp_path: Path) -> None:
    guard = ProcGuard(written(tmp_path, EVERY_KEY))
    guard.load_config()
    guard.setup_logging()
    guard.initialize_components()
    assert guard.start_workers()
    try:
        pids = until(
            lambda: [pid for s in guard.process_manager.statuses().values() if (pid := s.pid)], "they run"
        )
        assert len(pids) == 2
        assert (tmp_path / "trainer-0.pid").read_text().strip() == str(pids[0])
        ends = threading.Timer(0.1, guard.stop)
        ends.start()
        assert guard.run() == 0, "it goes on with what was started, and ends when it is told to"
        ends.join()
    finally:
        guard.close()
    assert not any(map(lives, pids))
    log = (tmp_path / "procguard.log").read_text()
    assert "INFO Guard of 2 workers" in log


def test_procguard_from_another_thread_and_from_start_to_end(tmp_path: Path) -> None:
    text = yaml.safe_dump({"workers": [{"worker_id": "a", "command": "true"}]})
    guard = ProcGuard(str(written(tmp_path, text)))
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(guard.run()))
    thread.start()
    thread.join(DEADLINE_S)
    assert codes == [0]
    guard.close()
    guard.stop()


def test_procguard_calls_a_checkpoint_adapter_around_a_recovery(tmp_path: Path) -> None:
    told: list[tuple[str, ...]] = []

    class Checkpoints(CheckpointAdapter):
        def before_stop(self, worker_ids: Any) -> None:
            told.append(("before_stop", *worker_ids))

        def after_restart(self, worker_ids: Any) -> None:
            told.append(("after_restart", *worker_ids))

    text = yaml.safe_dump({"workers": [{"worker_id": w, "command": "sleep 1000"} for w in "ab"]})
    guard = ProcGuard(written(tmp_path, text), checkpoint_adapter=Checkpoints())
    try:
        assert guard.start_workers()
        assert guard.process_manager.kill_worker("a", "KILL")
        until(lambda: len(told) == 2, "both are told")
        assert told == [("before_stop", "a", "b"), ("after_restart", "a", "b")]
    finally:
        guard.close()


def test_procguard_says_all_that_is_wrong_with_its_file(tmp_path: Path) -> None:
    text = "workers:\n  - worker_id: a\n  - {worker_id: a, command: sleep 1, restart_dealy: 3}\n"
    with pytest.raises(ConfigError) as caught:
        ProcGuard(written(tmp_path, text)).load_config()
    assert "workers[0].command is missing" in str(caught.value)
    assert "did you mean restart_delay?" in str(caught.value)


@pytest.mark.parametrize("command", [["procguard.main"], ["procguard.main", "--config"]])
def test_the_command_without_a_file_says_what_to_do(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert "--config" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_with_a_file_that_cannot_be_exits_with_2(tmp_path: Path) -> None:
    with Guard(tmp_path, [{"worker_id": "a", "command": "no-such-program"}]) as guard:
        started = guard.run_another()
        assert started.returncode == 2
        assert "workers[0].command" in started.stderr
        assert "no-such-program" in started.stderr
        assert "Traceback" not in started.stderr


def test_python_m_procguard_main_with_every_key(tmp_path: Path) -> None:
    with Guard(tmp_path, []) as guard:
        guard.config.write_text(EVERY_KEY.replace("health_check_url: http://127.0.0.1:9/health", ""))
        guard.state_file = tmp_path / "procguard_state.json"
        guard.start()
        pids = guard.until_running("trainer-0", "trainer-1")
        assert (tmp_path / "trainer-0.pid").read_text().strip() == str(pids["trainer-0"])
        assert guard.cli_json("tasks")["workers"]["trainer-0"] == ["shard-0"]
        assert (tmp_path / "procguard_state.json").exists()
        assert (tmp_path / "trainer-0.log").exists()
        assert guard.stop() == 0
        assert not (tmp_path / "trainer-0.pid").exists()


def test_a_file_without_workers_is_a_manager_for_remote_ones(tmp_path: Path) -> None:
    with Guard(tmp_path, []) as guard:
        guard.config.write_text("state: {state_file: state.json}\n")
        guard.start()
        guard.until(guard.snapshot, "it can be asked")
        assert guard.workers() == {}
        assert guard.stop() == 0


# --- ConfigLoader


def test_config_loader_reads_every_key(tmp_path: Path) -> None:
    config = ConfigLoader(written(tmp_path, EVERY_KEY)).load()
    first, second = config.workers
    assert first.command == ("sleep", "1000") == second.command
    assert (first.max_restarts, first.restart_delay, first.stop_signal) == (3, 2.0, "SIGINT")
    assert config.monitoring.heartbeat_timeout == 30.0
    assert config.recovery.max_recovery_attempts == 3
    assert config.communication.adapter_config.timeout == 5000
    assert config.state.state_file == str(tmp_path / "procguard_state.json")
    assert config.web.port == 8080
    set_keys = set(yaml.safe_load(EVERY_KEY)["workers"][0])
    assert set_keys == set(type(first).model_fields), "each key of a worker stands in this file"


# --- the five classes of procguard.core


def test_process_manager(manager: ProcessManager) -> None:
    for name in ("w0", "w1", "w2"):
        manager.register_worker_config(name, {"command": "sleep 1000", "working_dir": "/", "max_restarts": 3})
    assert manager.start_worker("w0") and manager.start_worker("w1")
    status = manager.get_worker_status("w0")
    assert status["state"] == "running"
    assert lives(status["pid"])
    assert manager.restart_healthy_workers(["w1"]) == {"w0": True}
    assert manager.get_worker_status("w0")["pid"] != status["pid"]
    assert manager.stop_worker("w0", force=False)
    assert manager.stop_worker("w0", force=True)
    assert manager.stop_all_workers(force=False) == {"w0": True, "w1": True, "w2": True}
    assert manager.get_worker_status("w1")["state"] == "stopped"
    with pytest.raises(UsageError, match="w9"):
        manager.start_worker("w9")


def test_process_monitor_tells_which_workers_have_failed() -> None:
    failed: list[list[str]] = []
    told = threading.Event()

    def callback(worker_ids: list[str]) -> None:
        failed.append(worker_ids)
        told.set()

    monitor = ProcessMonitor(
        [], monitoring_interval=1.0, heartbeat_timeout=10.0, zombie_detection=True, cpu_threshold=1.0,
        memory_threshold=1.0,
    )  # fmt: skip
    with subprocess.Popen(["sleep", "1000"]) as process:
        monitor.register_worker("w1", {"pid": process.pid})
        monitor.register_worker("w2", {})
        monitor.set_failure_callback(callback)
        monitor.start()
        try:
            until(lambda: monitor.get_status("w1") is HealthStatus.HEALTHY, "it is well")
            process.kill()
            assert told.wait(DEADLINE_S)
            assert failed == [["w1"]]
            assert monitor.get_status("w1") in (HealthStatus.DEAD, HealthStatus.ZOMBIE)
        finally:
            monitor.stop()
            process.kill()


def test_process_monitor_with_worker_configs_and_a_manager(manager: ProcessManager) -> None:
    configs = [{"worker_id": "w0", "command": "sleep 1000"}]
    manager.register_worker_config("w0", configs[0])
    told = threading.Event()
    monitor = ProcessMonitor(configs, heartbeat_timeout=10.0, process_manager=manager)
    monitor.set_failure_callback(lambda worker_ids: told.set())
    monitor.start()
    try:
        manager.start_worker("w0")
        until(lambda: monitor.get_status("w0") is HealthStatus.HEALTHY, "it is well")
        os.kill(manager.get_worker_status("w0")["pid"], 9)
        assert told.wait(DEADLINE_S)
    finally:
        monitor.stop()


@pytest.mark.parametrize(
    "recovery_config", [None, {}, {"stop_all_on_failure": False}, {"task_reassignment": True}]
)
def test_failure_handler_with_every_key_optional(
    manager: ProcessManager, recovery_config: dict[str, bool] | None
) -> None:
    state = StateManager()
    for name in ("w0", "w1"):
        manager.register_worker_config(name, {"command": "sleep 1000", "tasks": [f"task of {name}"]})
        state.add_task(f"task of {name}", worker_id=name)
        manager.start_worker(name)
    handler = FailureHandler(state, manager, recovery_config)
    before = {name: status.pid for name, status in manager.statuses().items()}
    os.kill(before["w0"] or 0, 9)
    until(lambda: manager.get_worker_status("w0")["pid"] is None, "it is dead")
    assert handler.handle_failure(["w0"])
    after = {name: status.pid for name, status in manager.statuses().items()}
    if recovery_config == {"task_reassignment": True}:
        assert after["w0"] is None
        assert state.tasks_of("w1") == ["task of w0", "task of w1"]
    else:
        assert after["w0"] not in (None, before["w0"])
        assert (after["w1"] == before["w1"]) is (recovery_config == {"stop_all_on_failure": False})
    handler.close()


def test_state_manager(tmp_path: Path) -> None:
    path = tmp_path / "procguard_state.json"
    state = StateManager(path)
    state.update_worker_state("w0", phase="training", step=3)
    assert state.get_worker_state("w0")["step"] == 3
    state.add_task("t0", {"shard": 0}, worker_id="w0")
    state.add_task("t1", worker_id="w1")
    state.enqueue_task("t2")
    assert state.task_queue() == ["t2"]
    assert state.next_task("w1") == "t2"
    assert state.reassign_tasks("w0", "w1") == ["t0"]
    threads = [
        threading.Thread(target=lambda n=n: [state.add_task(f"{n}-{i}", worker_id="w2") for i in range(20)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state.complete_task("t1")
    state.save()
    state.close()
    again = StateManager(path)
    assert sorted(again.tasks_of("w1")) == ["t0", "t2"]
    assert len(again.tasks_of("w2")) == 80
    assert again.worker_states()["w0"]["phase"] == "training"
    assert not again.tasks_of("w0")


def test_health_status_has_its_names() -> None:
    names = {"HEALTHY", "STARTING", "UNHEALTHY", "UNRESPONSIVE", "DEAD", "ZOMBIE", "STOPPED", "UNKNOWN"}
    assert names <= set(HealthStatus.__members__)


# --- adapters


def test_mock_adapter() -> None:
    heard: list[str] = []
    adapter: CommunicationAdapter = MockCommunicationAdapter()
    with adapter:
        adapter.register_worker("w0")
        adapter.set_heartbeat_callback(heard.append)
        assert isinstance(adapter.send_command("w0", "save", step=3), bool)
        assert adapter.send_heartbeat("w0") is True
        assert adapter.send_heartbeat("nobody") is False
    until(lambda: heard == ["w0"], "the beat is told")


def test_zmq_adapter_and_a_worker_that_beats_with_one_line() -> None:
    heard = threading.Event()
    adapter = ZMQCommunicationAdapter(host="127.0.0.1", port_base=free_ports(), timeout=5000)
    adapter.set_heartbeat_callback(lambda worker_id: heard.set())
    beats = "import time\nfrom procguard.client import beat\nwhile beat(): time.sleep(0.02)"
    with adapter:
        adapter.register_worker("w0")
        environ = {**os.environ, **adapter.environment("w0")}
        with subprocess.Popen([sys.executable, "-c", beats], cwd=REPOSITORY, env=environ) as process:
            try:
                assert heard.wait(DEADLINE_S)
            finally:
                process.kill()


def test_zmq_adapter_sends_commands() -> None:
    done: list[tuple[str, dict[str, Any]]] = []
    adapter = ZMQCommunicationAdapter(host="127.0.0.1", port_base=free_ports(), timeout=10_000)
    with adapter:
        adapter.register_worker("w0")
        place = adapter.environment("w0")

        def on_command(name: str, arguments: Any) -> int:
            done.append((name, dict(arguments)))
            return 7

        with Heart(on_command, environ=place):
            until(lambda: adapter.connected_workers() == ["w0"], "it is there")
            assert adapter.send_command("w0", "save", step=3) is True
            assert adapter.request("w0", "save", {"step": 4}) == CommandAnswer(True, 7)
        assert adapter.send_command("nobody", "save") is False
    assert done == [("save", {"step": 3}), ("save", {"step": 4})]


def test_lighthouse_adapter_is_one_too() -> None:
    assert issubclass(LighthouseAdapter, CommunicationAdapter)


class OwnAdapter(MockCommunicationAdapter):
    """What a user may write: made with ``adapter_config`` as keyword arguments."""

    def __init__(self, greeting: str = "", **rest: Any) -> None:
        super().__init__()
        self.greeting = greeting

    def environment(self, worker_id: str) -> dict[str, str]:
        return {"GREETING": f"{self.greeting}, {worker_id}"}


def test_an_adapter_of_ones_own_by_its_place(tmp_path: Path) -> None:
    says = python(f"import os; open({str(tmp_path / 'said')!r}, 'w').write(os.environ['GREETING'])")
    own = {"adapter_type": "tests.test_guard_interface:OwnAdapter", "adapter_config": {"greeting": "hello"}}
    with Guard(tmp_path, [{"worker_id": "w0", "command": says}], communication=own) as guard:
        guard.start()
        assert guard.wait() == 0, guard.said
    assert (tmp_path / "said").read_text() == "hello, w0"
