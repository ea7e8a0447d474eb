"""Which guard is meant: by flag, by variable, the only one; and what is said where that is not clear."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard.env import guard_folders
from procguard.errors import GuardUnreachable, UsageError
from procguard.guard_finding import find_guard, only_guard
from procguard.supervisor.control_socket import PATH_BYTES_MAX
from tests.supervisor.fake_guard import fake_guard


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short path; guards are registered in ``run`` there."""
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        monkeypatch.setenv("PROCGUARD_RUNTIME_DIR", str(Path(name) / "run"))
        yield Path(os.path.realpath(name))


def in_folder(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "g.yaml").write_text("state: {state_file: s.json}\n")
    return folder / name


def test_the_only_one_that_runs(folder: Path) -> None:
    assert only_guard() is None
    with fake_guard(folder, folders=guard_folders()) as (server, _):
        assert find_guard().socket == server.path
    with pytest.raises(GuardUnreachable, match=r"no guard runs here for you .*`procguard --config FILE`"):
        find_guard()


def test_of_several_none_is_chosen(folder: Path) -> None:
    one, other = in_folder(folder, "one"), in_folder(folder, "other")
    with (
        fake_guard(one, config=one / "g.yaml", folders=guard_folders()) as (server, _),
        fake_guard(other, folders=guard_folders()) as (server_without_config, _),
    ):
        with pytest.raises(UsageError, match="2 guards run here") as error:
            find_guard()
        assert f"\n  --config {one / 'g.yaml'}   (pid {os.getpid()}, since 20" in str(error.value)
        assert f"\n  --socket {server_without_config.path}   (pid" in str(error.value)
        assert find_guard(config=str(one / "g.yaml")).socket == server.path
        assert find_guard(socket=str(server.path)).origin == "--socket"


def test_flags_go_over_the_variable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCGUARD_GUARD_SOCKET", "/from/variable")
    assert find_guard() == (Path("/from/variable"), "PROCGUARD_GUARD_SOCKET")
    assert find_guard(socket="/from/flag").socket == Path("/from/flag")
    with pytest.raises(UsageError, match="--config and --socket both name a guard"):
        find_guard(config="g.yaml", socket="/from/flag")


def test_a_guard_is_found_though_its_file_is_broken_by_now(folder: Path) -> None:
    config = in_folder(folder, "one") / "g.yaml"
    with fake_guard(folder, config=config, folders=guard_folders()) as (server, _):
        config.write_text("workers: [")
        (folder / "link.yaml").symlink_to(config)
        assert find_guard(config=str(config)).socket == server.path
        assert find_guard(config=str(folder / "link.yaml")).socket == server.path


def test_a_guard_that_is_not_registered_is_found_by_its_state_file(folder: Path) -> None:
    one = in_folder(folder, "one")
    with fake_guard(one) as (server, _):
        assert find_guard(config=str(one / "g.yaml")).socket == server.path
    deep = in_folder(folder, "d" * PATH_BYTES_MAX)
    with fake_guard(deep, folders=guard_folders()) as (server, _):
        assert server.path.parent == folder / "run"
        assert find_guard(config=str(deep / "g.yaml")).socket == server.path


def test_none_runs_with_this_file(folder: Path) -> None:
    config = in_folder(folder, "one") / "g.yaml"
    with pytest.raises(
        GuardUnreachable, match=rf"looked at .*/s.json.sock\). Start it with `procguard --config {config}`"
    ):
        find_guard(config=str(config))
    with pytest.raises(
        UsageError, match=r"--config: .*missing.yaml: cannot be read \(No such file or directory\); name the"
    ):
        find_guard(config=str(folder / "missing.yaml"))


@pytest.mark.parametrize("content", ["", "state: 3", "state: {state_file: 7}", "state: {state_file: ''}"])
def test_a_file_without_a_state_file_has_the_default_one(folder: Path, content: str) -> None:
    config = folder / "g.yaml"
    config.write_text(content)
    with pytest.raises(GuardUnreachable, match=rf"looked at {folder}/procguard_state.json.sock"):
        find_guard(config=str(config))


@pytest.mark.parametrize("content", ["[]", "workers: [", "\x00"])
def test_a_file_that_is_no_configuration_is_said_to_be_none(folder: Path, content: str) -> None:
    config = folder / "g.yaml"
    config.write_text(content)
    with pytest.raises(UsageError, match=rf"--config: {config}"):
        find_guard(config=str(config))


def test_where_guards_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert guard_folders({"PROCGUARD_RUNTIME_DIR": "/here"}) == (Path("/here"),)
    folders = guard_folders({"XDG_RUNTIME_DIR": "/run/mine"}, uid=987654)
    assert folders == (Path("/run/mine/procguard"), Path("/tmp/procguard-987654"))
    assert guard_folders({"XDG_RUNTIME_DIR": "not/absolute"}, uid=987654) == (Path("/tmp/procguard-987654"),)
    assert guard_folders({}, uid=987654) == (Path("/tmp/procguard-987654"),)
