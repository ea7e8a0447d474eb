"""Putting ProcGuard's classes in the place of torchft's: what is replaced, told and refused.

On modules of torchft's shape; ``tests/test_torchft.py`` runs the real one.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from procguard.adapters import torchft as ours
from procguard.adapters.torchft import __main__ as command
from procguard.adapters.torchft import installation
from procguard.errors import ConfigError, UsageError

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")


class ManagerClient:
    """torchft's, before."""


class ManagerServer:
    """torchft's, before."""


class LighthouseServer:
    """torchft's, before."""


class Gloo:
    """Its process group."""


class Manager:
    """Its Manager."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._group_rank = 1
        self._pg = SimpleNamespace(reconfigure=None, abort=None)
        self.is_shut = False

    def shutdown(self, wait: bool = True) -> None:
        self.is_shut = True


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """torchft, as its modules are seen by whoever imports it."""
    contents: dict[str, dict[str, Any]] = {
        "torchft": {},
        "torchft._torchft": {
            "ManagerClient": ManagerClient,
            "ManagerServer": ManagerServer,
            "LighthouseServer": LighthouseServer,
        },
        "torchft.coordination": {"LighthouseServer": LighthouseServer},
        "torchft.manager": {
            "Manager": type("Manager", (Manager,), {}),
            "ManagerClient": ManagerClient,
            "ManagerServer": ManagerServer,
        },
        "torchft.process_group": {
            "ProcessGroupGloo": Gloo,
            "create_store_client": lambda address: address,
            "ReconfigureOptions": object,
        },
    }
    modules: dict[str, Any] = {}
    for name, content in contents.items():
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        modules[name] = module
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return modules


@needs_torch
def test_classes_are_replaced_wherever_torchft_has_them(theirs: dict[str, Any]) -> None:
    installation.install()
    assert theirs["torchft._torchft"].ManagerServer is ours.ManagerServer
    assert theirs["torchft.manager"].ManagerClient is ours.ManagerClient
    assert theirs["torchft.coordination"].LighthouseServer is ours.LighthouseServer
    assert theirs["torchft.process_group"].ProcessGroupGloo is Gloo


@needs_torch
def test_a_manager_takes_its_seat_and_leaves_it(
    theirs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.install()
    begin = theirs["torchft.manager"].Manager.__init__
    installation.install()
    assert theirs["torchft.manager"].Manager.__init__ is begin, "once is enough"
    calls: list[Any] = []
    client = object.__new__(ours.ManagerClient)
    monkeypatch.setattr(ours.ManagerClient, "take_seat", lambda self, rank, ends: calls.append((rank, ends)))
    monkeypatch.setattr(ours.ManagerClient, "shutdown", lambda self: calls.append("left"))
    manager = theirs["torchft.manager"].Manager(client)
    ((rank, breaker),) = calls
    assert (rank, breaker._pg) == (1, manager._pg)
    manager.shutdown(wait=False)
    assert manager.is_shut and calls[-1] == "left"


def test_torchft_hears_of_our_variables_unless_it_has_its_own() -> None:
    environ = {
        "PROCGUARD_LIGHTHOUSE": "host:1",
        "PROCGUARD_TIMEOUT_SEC": "1.5",
        "PROCGUARD_QUORUM_TIMEOUT_SEC": "30",
        "TORCHFT_QUORUM_TIMEOUT_SEC": "7",
        "PROCGUARD_QUORUM_RETRIES": "3",
        "PROCGUARD_MANAGER_PORT": "0",
    }
    installation._tell_variables(environ)
    said = {name: text for name, text in environ.items() if name.startswith("TORCHFT_")}
    assert said == {
        "TORCHFT_LIGHTHOUSE": "http://host:1",
        "TORCHFT_TIMEOUT_SEC": "2",
        "TORCHFT_QUORUM_TIMEOUT_SEC": "7",
        "TORCHFT_QUORUM_RETRIES": "3",
        "TORCHFT_MANAGER_PORT": "0",
    }
    with pytest.raises(ConfigError, match="PROCGUARD_TIMEOUT_SEC"):
        installation._tell_variables({"PROCGUARD_TIMEOUT_SEC": "soon"})


def test_without_torchft_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchft._torchft", None)
    with pytest.raises(UsageError, match=r"torchft cannot be imported .*; pip install torchft-nightly"):
        installation.install()


def test_another_torchft_is_named(theirs: dict[str, Any]) -> None:
    del theirs["torchft.process_group"].create_store_client
    with pytest.raises(UsageError, match=r"this torchft has no torchft\.process_group\.create_store_client"):
        installation.install()


def test_the_command_runs_the_script_as_python_would(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "install", lambda: print("installed"))
    monkeypatch.setattr(sys, "argv", ["before"])
    monkeypatch.setattr(sys, "path", ["before", *sys.path[1:]])
    script = tmp_path / "train.py"
    script.write_text("import sys; print(__name__, sys.argv[1:], sys.path[0])")
    command.main([str(script), "-m", "--flag"])
    assert capsys.readouterr().out == f"installed\n__main__ ['-m', '--flag'] {tmp_path}\n"
    command.main(["-m", "this"])
    assert "The Zen of Python" in capsys.readouterr().out


def test_the_command_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="usage: python -m procguard"):
        command.main([])
    with pytest.raises(SystemExit, match=r"there is no nowhere\.py"):
        command.main(["nowhere.py"])
    monkeypatch.setitem(sys.modules, "torchft._torchft", None)
    with pytest.raises(SystemExit, match="Error: torchft cannot be imported"):
        command.main([__file__])
    command.main(["--help"])
    assert "usage:" in capsys.readouterr().out


def test_every_public_class_says_what_its_arguments_are() -> None:
    for name in set(ours.__all__) - {"install"}:
        assert "Args:" in str(getattr(ours, name).__doc__), name
    with pytest.raises(AttributeError, match="has no attribute 'Lighthouse'"):
        _ = ours.Lighthouse
