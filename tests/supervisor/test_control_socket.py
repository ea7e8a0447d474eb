"""Where the socket lies, and whose it is: a dead guard's is replaced, a living one's never."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from procguard.errors import StateError
from procguard.supervisor.control_socket import (
    PATH_BYTES_MAX,
    claim,
    is_private,
    listener_pid,
    make_private,
    open_listener,
    peer_of,
    socket_places,
)


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose path leaves room in a socket's address."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        yield Path(name)


def test_only_we_may_connect(short: Path) -> None:
    with closing(claim(short / "s.sock")):
        assert stat.S_IMODE(os.stat(short / "s.sock").st_mode) == 0o600
        assert listener_pid(short / "s.sock") == os.getpid()


def test_a_dead_guards_socket_is_replaced(short: Path) -> None:
    path = short / "s.sock"
    claim(path).close()
    assert path.exists()
    assert listener_pid(path) is None
    with closing(claim(path)) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        accepted, _ = listener.accept()
        with accepted:
            assert peer_of(accepted) == (os.getpid(), os.geteuid())


def test_a_living_guards_socket_is_not(short: Path) -> None:
    path = short / "s.sock"
    with closing(claim(path)):
        inode = path.stat().st_ino
        with pytest.raises(StateError, match=rf"a guard listens at .* already \(pid {os.getpid()}\)"):
            claim(path)
        assert path.stat().st_ino == inode


def test_a_guard_with_a_full_backlog_is_alive(short: Path) -> None:
    path = short / "s.sock"
    with closing(claim(path)) as listener:
        listener.listen(0)
        crowd = []
        try:
            while True:
                client = socket.socket(socket.AF_UNIX)
                client.setblocking(False)
                crowd.append(client)
                try:
                    client.connect(str(path))
                except BlockingIOError:
                    break
            with pytest.raises(StateError, match="already"):
                claim(path)
        finally:
            for client in crowd:
                client.close()


def test_what_is_no_socket_is_left_alone(short: Path) -> None:
    path = short / "s.sock"
    path.write_text("precious")
    with pytest.raises(StateError, match="is something else; move it away"):
        claim(path)
    assert path.read_text() == "precious"


def test_of_many_that_start_at_once_one_wins(short: Path) -> None:
    path = short / "s.sock"
    claim(path).close()
    listeners, refusals = [], []
    together = threading.Barrier(8)

    def start() -> None:
        together.wait()
        try:
            listeners.append(claim(path))
        except StateError as error:
            refusals.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for listener in listeners:
        listener.close()
    assert (len(listeners), len(refusals)) == (1, 7)


def test_it_lies_beside_the_state_file(short: Path) -> None:
    (short / "link").symlink_to(short)
    assert (
        socket_places(short / "link" / "state.json", [])[0]
        == Path(os.path.realpath(short)) / "state.json.sock"
    )
    listener, path = open_listener(short / "state.json", [])
    with closing(listener):
        assert path == Path(os.path.realpath(short)) / "state.json.sock"


def test_a_path_that_is_too_long_gets_a_short_one(short: Path) -> None:
    deep = short / ("d" * PATH_BYTES_MAX)
    deep.mkdir()
    listener, path = open_listener(deep / "s.json", [short / "run"])
    with closing(listener):
        assert path.parent == short / "run"
        assert [path] == socket_places(deep / "s.json", [short / "run"])
        assert listener_pid(path) == os.getpid()
    with pytest.raises(StateError, match=r"every path is longer than 107 bytes.*PROCGUARD_RUNTIME_DIR"):
        open_listener(deep / "s.json", [])


def test_a_folder_without_sockets_gets_another_one(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (short / "state").mkdir()
    real = socket.socket.bind

    class Socket(socket.socket):
        def bind(self, address: object) -> None:
            if "/state/" in str(address):
                raise OSError(95, "Operation not supported")
            real(self, address)

    monkeypatch.setattr("procguard.supervisor.control_socket.socket.socket", Socket)
    listener, path = open_listener(short / "state" / "s.json", [short / "run"])
    with closing(listener):
        assert path.parent == short / "run"


def test_folders_of_others_are_not_used(short: Path) -> None:
    deep = short / ("d" * PATH_BYTES_MAX)
    (short / "open").mkdir(mode=0o777)
    (short / "open").chmod(0o777)
    (short / "mine").mkdir(mode=0o700)
    (short / "link").symlink_to(short / "mine")
    assert not make_private(short / "open")
    assert not make_private(short / "link")
    assert not make_private(short / "missing" / "run")
    assert make_private(short / "mine")
    assert make_private(short / "new")
    assert stat.S_IMODE((short / "new").stat().st_mode) == 0o700
    assert not is_private(short / "nothing")
    with pytest.raises(StateError, match="must be mode 0700 and no link"):
        open_listener(deep / "s.json", [short / "open"])
