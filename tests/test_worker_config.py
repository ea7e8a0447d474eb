"""A worker's settings as given from Python, and what this machine must have for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from procguard.errors import UsageError
from procguard.worker_config import WorkerConfig, error_file_of, parse_worker
from procguard.worker_places import missing_places

COMMAND = {"command": "sleep 1"}


def test_a_mapping_with_the_yamls_keys() -> None:
    worker = parse_worker(
        "a", {"command": "sleep '1 2'", "max_restarts": 0, "depends_on": ["b"], "stop_timeout": 3}
    )
    assert worker == WorkerConfig(
        worker_id="a", command=("sleep", "1 2"), max_restarts=0, depends_on=("b",), stop_timeout=3.0
    )
    assert parse_worker("a", worker) is worker
    assert parse_worker("a", {"worker_id": "a", **COMMAND}).worker_id == "a"


@pytest.mark.parametrize(
    ("worker_id", "config", "said"),
    [
        ("a", {}, "a: command is missing; write command: python train.py"),
        (
            "a",
            {**COMMAND, "pidfile": "x"},
            "a: pidfile = 'x' is not a key of a worker; did you mean pid_file?",
        ),
        (
            "a",
            {"worker_id": "b", **COMMAND},
            "a: its settings say worker_id = 'b'; make them the same",
        ),
        (
            "a b",
            COMMAND,
            "a b: worker_id = 'a b' cannot be a name; write 1 to 128 letters, digits, and",
        ),
        ("-a", COMMAND, "-a: worker_id = '-a' cannot be a name"),
        ("a", 5, "a: int is no mapping of settings"),
        ("a", {"command": ("x\0",)}, "holds a NUL character"),
        ("a", {**COMMAND, "env": {"A": "\0"}}, "gives A a NUL character; remove it"),
        ("a", {**COMMAND, "worker_type": "gpu"}, "worker_type = 'gpu' must be 'process' or 'notify'"),
    ],
)
def test_what_cannot_be(worker_id: str, config: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_worker(worker_id, config)
    assert said in str(caught.value)


def test_all_of_it_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parse_worker("a", {"comand": "x", "max_restarts": -1})
    assert len(str(caught.value).splitlines()) == 3


# --- what this machine must have


def missing(tmp_path: Path, **settings: Any) -> list[tuple[str, str]]:
    worker = parse_worker("a", {**COMMAND, "working_dir": str(tmp_path), **settings})
    return [(found.key, found.phrase) for found in missing_places(worker)]


def test_nothing_is_missing_and_nothing_is_made(tmp_path: Path) -> None:
    assert missing(tmp_path, pid_file=f"{tmp_path}/a.pid", log_file="logs/today/a.log") == []
    assert list(tmp_path.iterdir()) == []
    [(key, phrase)] = missing(tmp_path, pid_file="run/a.pid")
    assert (key, f"there is no folder {tmp_path}/run; make it" in phrase) == ("pid_file", True)


def test_a_program_is_looked_for_where_the_worker_would(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "mine"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    [(key, phrase)] = missing(tmp_path, command="bin/mine")
    assert (key, "not executable; chmod +x" in phrase) == ("command", True)
    program.chmod(0o755)
    assert missing(tmp_path, command="bin/mine") == []
    assert missing(tmp_path, command="mine", env={"PATH": str(program.parent)}) == []
    [(key, phrase)] = missing(tmp_path, command="mine")
    assert "not found in PATH" in phrase
    [(key, phrase)] = missing(tmp_path, command="./bin")
    assert "not executable" in phrase


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert missing(tmp_path, working_dir=str(file)) == [("working_dir", "is not a folder; name one")]
    [(key, phrase)] = missing(tmp_path, working_dir=str(tmp_path / "no"))
    assert (key, phrase.startswith("does not exist; make it")) == ("working_dir", True)


def test_files_that_could_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = missing(tmp_path, pid_file="file/a.pid", log_file=".")
    assert [key for key, _ in found] == ["pid_file", "log_file"]
    assert found[0][1].endswith("file is not a folder; name another file")
    assert found[1][1] == "is a folder; name a file in it"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_in_which_one_may_not_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    [(key, phrase)] = missing(tmp_path, pid_file="a.pid")
    assert (key, "may not write in" in phrase) == ("pid_file", True)


def test_where_errors_go() -> None:
    assert error_file_of(Path("logs/w0.log")) == Path("logs/w0.err")
    assert error_file_of(Path("logs/w0.err")) == Path("logs/w0.err.err")
    assert error_file_of(Path("w0")) == Path("w0.err")
