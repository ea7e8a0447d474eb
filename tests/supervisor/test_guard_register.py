"""The register: it holds who listens, and nobody who does not."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from procguard.supervisor.control_socket import claim
from procguard.supervisor.guard_register import Entry, forget_dead, register, running


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        yield Path(name)


def entry(folder: Path, name: str, started_at: float = 1.0) -> Entry:
    return Entry(os.getpid(), str(folder / f"{name}.sock"), str(folder / name), None, started_at)


def test_who_listens_is_there_the_oldest_first(folder: Path) -> None:
    young, old = entry(folder, "young", 2.0), entry(folder, "old", 1.0)
    with closing(claim(folder / "young.sock")), closing(claim(folder / "old.sock")):
        assert register(young, [folder])
        assert register(old, [folder])
        assert running([folder]) == [old, young]
        assert running([folder, folder]) == [old, young]
    assert running([folder]) == []


def test_a_restarted_guard_is_there_once(folder: Path) -> None:
    with closing(claim(folder / "a.sock")):
        register(entry(folder, "a", 1.0), [folder])
        register(entry(folder, "a", 2.0), [folder])
        assert running([folder]) == [entry(folder, "a", 2.0)]
        assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".sock"]


def test_the_dead_are_forgotten(folder: Path) -> None:
    with closing(claim(folder / "alive.sock")):
        dead, alive = register(entry(folder, "dead"), [folder]), register(entry(folder, "alive"), [folder])
        assert dead and alive
        forget_dead([folder, folder / "missing"])
        assert not dead.exists()
        assert alive.exists()


def test_the_first_folder_that_is_ours_alone_takes_it(folder: Path) -> None:
    (folder / "open").mkdir()
    (folder / "open").chmod(0o755)
    path = register(entry(folder, "a"), [folder / "open", folder / "mine"])
    assert path and path.parent == folder / "mine"
    assert register(entry(folder, "a"), [folder / "open"]) is None
    assert list((folder / "open").iterdir()) == []


def test_what_others_wrote_is_not_believed(folder: Path) -> None:
    with closing(claim(folder / "a.sock")):
        path = register(entry(folder, "a"), [folder])
        assert path
        folder.chmod(0o770)
        assert running([folder]) == []
        folder.chmod(0o700)
        assert len(running([folder])) == 1


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff", b"[" * 50_000, b'{"pid": null}']
)
def test_what_is_no_entry_is_passed_over(folder: Path, content: bytes) -> None:
    (folder / "guard-0.json").write_bytes(content)
    (folder / "guard-1.json").mkdir()
    assert running([folder]) == []
    forget_dead([folder])
    assert (folder / "guard-0.json").exists()
