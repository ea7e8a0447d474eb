"""The guard's own wiring, in this process: what it does when a part of it cannot be opened or closed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard import ProcGuard
from procguard.adapters import MockCommunicationAdapter


class Unreachable(MockCommunicationAdapter):
    """Anybody's adapter, which raises what it likes."""

    def initialize(self) -> None:
        raise OSError("no route to host")


class Sticky(MockCommunicationAdapter):
    def close(self) -> None:
        raise RuntimeError("not now")


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "n"))
        listening.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", listening.getsockname())
        yield listening


def guard_with(tmp_path: Path, adapter: type | None = None, command: str = "sleep 1000") -> ProcGuard:
    kind = f"{adapter.__module__}:{adapter.__name__}" if adapter else "mock"
    config = tmp_path / "guard.yaml"
    config.write_text(
        f"workers: [{{worker_id: w0, command: {command}}}]\n"
        f"communication: {{adapter_type: '{kind}'}}\n"
        "state: {state_file: state.json}\n"
        "logging: {file: guard.log}\n"
    )
    return ProcGuard(config)


def test_an_adapter_that_cannot_be_initialized_ends_the_guard_and_is_named(tmp_path: Path) -> None:
    assert guard_with(tmp_path, Unreachable).run() == 1
    log = (tmp_path / "guard.log").read_text()
    assert "Unreachable' could not be initialized: OSError: no route to host; correct" in log
    assert "bug" not in log


def test_an_adapter_that_cannot_be_closed_keeps_nothing_else_open(tmp_path: Path) -> None:
    assert guard_with(tmp_path, Sticky, command="'true'").run() == 0
    assert "RuntimeError: not now" in (tmp_path / "guard.log").read_text()
    assert guard_with(tmp_path, command="'true'").run() == 0, "the state is nobody's any more"


def test_who_starts_the_workers_before_running_is_ready_too(tmp_path: Path, told: socket.socket) -> None:
    guard = guard_with(tmp_path)
    try:
        guard.load_config()
        guard.setup_logging()
        guard.initialize_components()
        assert guard.start_workers()
        assert told.recv(100) == b"READY=1\nSTATUS=guarding 1 workers"
    finally:
        guard.close()
    assert guard.process_manager.get_worker_status("w0").pid is None
