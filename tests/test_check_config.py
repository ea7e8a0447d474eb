"""``procguard check-config``: the file's problems, or that there are none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from procguard.main import main

GOOD = "workers:\n- {worker_id: a, command: sleep 1}\n- {worker_id: b, command: sleep 1}\n"
BAD = "workers:\n- {worker_id: a, command: no-such-program}\nrecovery: {recovery_timeout: 0}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "g.yaml"


def check(path: Path, *flags: str) -> Result:
    return CliRunner().invoke(main, ["check-config", str(path), *flags])


def test_a_good_file_is_one_line(path: Path) -> None:
    path.write_text(GOOD)
    found = check(path)
    assert (found.exit_code, found.stdout) == (0, f"{path}: valid; 2 workers (a, b), adapter mock\n")


def test_a_file_without_workers_is_good(path: Path) -> None:
    path.write_text("")
    assert check(path).stdout == f"{path}: valid; 0 workers, adapter mock\n"


def test_a_bad_file_is_a_line_for_each_problem_and_2(path: Path) -> None:
    path.write_text(BAD)
    found = check(path)
    assert found.exit_code == 2
    assert found.stdout == ""
    first, second = found.stderr.splitlines()
    assert first.startswith(f"{path}, line 2: workers[0].command = 'no-such-program' starts with")
    assert second.startswith(f"{path}, line 3: recovery.recovery_timeout = 0 must be greater than 0")


def test_for_another_machine_programs_are_not_looked_for(path: Path) -> None:
    path.write_text("workers: [{worker_id: a, command: /no/such/program, working_dir: /no/such}]\n")
    assert check(path).exit_code == 2
    assert check(path, "--elsewhere").exit_code == 0


def test_an_adapter_of_ones_own_is_looked_for(path: Path) -> None:
    path.write_text("communication: {adapter_type: 'no_such_module:Adapter'}\n")
    found = check(path)
    assert found.exit_code == 2
    assert "communication.adapter_type = 'no_such_module:Adapter': there is no module" in found.stderr
    assert check(path, "--elsewhere").exit_code == 0


def test_as_json(path: Path) -> None:
    path.write_text(GOOD)
    found = check(path, "--json")
    told = json.loads(found.stdout)
    assert (found.exit_code, told["ok"], told["problems"]) == (0, True, [])
    assert [worker["worker_id"] for worker in told["config"]["workers"]] == ["a", "b"]
    path.write_text(BAD)
    found = check(path, "--json")
    told = json.loads(found.stdout)
    assert (found.exit_code, told["ok"], told["config"]) == (2, False, None)
    assert [problem["key"] for problem in told["problems"]] == [
        "workers[0].command",
        "recovery.recovery_timeout",
    ]
    assert told["problems"][1]["place"] == f"{path}, line 3"


def test_what_may_be_secret_is_not_shown(path: Path) -> None:
    path.write_text("workers: [{worker_id: a, command: sleep 1, env: {TOKEN: hunter2, A: b}}]\n")
    found = check(path, "--json")
    assert "hunter2" not in found.output
    assert json.loads(found.stdout)["config"]["workers"][0]["env"] == ["A", "TOKEN"]


def test_no_file_at_all(path: Path) -> None:
    found = check(path)
    assert found.exit_code == 2
    assert f"{path}: cannot be read (No such file or directory)" in found.stderr
    assert json.loads(check(path, "--json").stdout)["ok"] is False


def test_as_users_run_it(path: Path) -> None:
    path.write_text(BAD)
    command = [sys.executable, "-m", "procguard.main", "check-config", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 2
