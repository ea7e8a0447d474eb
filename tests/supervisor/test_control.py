"""A guard's socket from start to end: made, registered, kept up, removed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard.errors import StateError
from procguard.supervisor.control import ControlServer
from procguard.supervisor.control_client import ControlClient
from procguard.supervisor.control_socket import listener_pid
from procguard.supervisor.guard_register import running
from tests.supervisor.fake_guard import DEADLINE_S, FakeCommands, fake_guard


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        yield Path(os.path.realpath(name))


def test_from_start_to_end(folder: Path) -> None:
    run = folder / "run"
    with fake_guard(folder, config=folder / "g.yaml", folders=[run]) as (server, _):
        assert server.path == folder / "s.json.sock"
        (entry,) = running([run])
        assert (entry.pid, entry.socket, entry.config) == (
            os.getpid(),
            str(server.path),
            str(folder / "g.yaml"),
        )
        assert entry.state_file == str(folder / "s.json")
    assert running([run]) == []
    assert list(run.iterdir()) == []
    assert not server.path.exists()


def test_two_guards_on_one_state_file(folder: Path) -> None:
    with (
        fake_guard(folder) as (server, _),
        pytest.raises(StateError, match="a guard listens at"),
        fake_guard(folder),
    ):
        pass
    assert not server.path.exists()


def test_what_was_killed_is_replaced(folder: Path) -> None:
    killed = ControlServer(FakeCommands(), folder / "s.json", folders=[folder / "run"])
    killed.start()
    assert killed._loop and killed._thread
    killed._loop.stop()  # and nothing is tidied up
    killed._thread.join(DEADLINE_S)
    assert (folder / "s.json.sock").exists()
    assert list((folder / "run").iterdir())
    assert running([folder / "run"]) == []
    with fake_guard(folder, folders=[folder / "run"]) as (server, _), ControlClient(server.path) as client:
        assert client.ask("status")["guard"]["pid"] == 4242
        assert client.guard_pid == os.getpid()
        assert len(list((folder / "run").iterdir())) == 1


def test_what_a_cleaner_took_away_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder / "run"
    with fake_guard(folder, folders=[run]) as (server, _):
        server.path.unlink()
        for path in run.iterdir():
            path.unlink()
        monkeypatch.setattr("procguard.supervisor.control.UPKEEP_S", 0.0)
        server._upkeep_at = 0.0
        deadline = 0
        while listener_pid(server.path) is None and deadline < 300:  # the loop looks around once a second
            os.sched_yield()
            deadline += not server.path.exists() and _waited()
        with ControlClient(server.path) as client:
            assert client.ask("status")["guard"]["pid"] == 4242
        assert len(running([run])) == 1
    assert not server.path.exists()


def _waited() -> int:
    import select

    select.select((), (), (), 0.1)
    return 1


def test_a_socket_that_is_another_guards_by_now_is_left_to_it(folder: Path) -> None:
    with fake_guard(folder) as (server, _):
        server.path.unlink()
        server.path.write_text("another's")
    assert server.path.read_text() == "another's"


def test_without_a_register_it_runs_and_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "run").mkdir(mode=0o755)
    (folder / "run").chmod(0o755)
    with fake_guard(folder, folders=[folder / "run"]) as (server, _), ControlClient(server.path) as client:
        assert client.ask("tasks")["queue"] == ["t3"]
    assert "verbs need --socket" in caplog.text


def test_closing_twice_and_unstarted(folder: Path) -> None:
    server = ControlServer(FakeCommands(), folder / "s.json")
    server.close()
    server.start()
    server.close()
    server.close()
