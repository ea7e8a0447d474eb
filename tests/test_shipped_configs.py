"""The files in configs/: they load, what their comments say of defaults is true, and they run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from procguard.adapters import ZMQCommunicationAdapter
from procguard.config import ConfigLoader, GuardConfig
from procguard.validation import KeyPath, model_at, path_text
from tests.adapters.test_communication_contract import eventually

REPOSITORY = Path(__file__).parent.parent
CONFIGS = REPOSITORY / "configs"
FULL = CONFIGS / "procguard_config.yaml"
EXAMPLE = CONFIGS / "example_config.yaml"
ENVIRON = {"HOME": "/home/ada", "PATH": os.environ["PATH"]}

UNITS = {
    "interval": "seconds",
    "timeout": "seconds",
    "window": "seconds",
    "delay": "seconds",
    "max": "seconds",  # restart_delay_max
    "period": "seconds",
    "bytes": "bytes",
    "backups": "count",
    "restarts": "count",
    "failures": "count",
    "attempts": "count",
    "threshold": "percent",
}
"""By the last word of a key."""


class Commented(NamedTuple):
    """A key as it stands in a file, with the comment above it."""

    path: KeyPath
    comment: str


def commented(path: Path) -> Iterator[Commented]:
    """Every line ``key: ...`` of the file; the items of ``workers`` are all taken for the first."""
    above: list[tuple[int, str]] = []
    comment = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip().removeprefix("- ")
        if text.startswith("#"):
            comment += " " + text.lstrip("# ")
            continue
        if found := re.match(r"([A-Za-z_]+):", text):
            indent = len(line) - len(line.lstrip())
            above = [(at, key) for at, key in above if at < indent and (key, text[0]) != ("workers", "-")]
            keys = [key for _, key in above]
            if keys[:1] == ["workers"]:
                keys[1:1] = [0]  # type: ignore[list-item]
            yield Commented((*keys, found[1]), comment)
            above.append((indent + (2 if line.strip().startswith("- ") else 0), found[1]))
        comment = "" if text else comment


def default_of(path: KeyPath) -> Any:
    """What counts where the key is left out."""
    owner = model_at(GuardConfig, path[:-1])
    assert owner is not None, path_text(path)
    field = owner.model_fields[str(path[-1])]
    return field.default


def keys_of(model: type[BaseModel], above: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key there is; of workers those of the first."""
    for name in model.model_fields:
        path = (*above, name)
        inner = model_at(model, (name,)) or model_at(model, (name, 0))
        if inner is None:
            yield path
        else:
            yield from keys_of(inner, (*path, 0) if name == "workers" else path)


def as_written(default: object) -> str:
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return str(list(default))
    return f"{default:g}" if isinstance(default, float) else str(default)


@pytest.mark.parametrize("path", [FULL, EXAMPLE], ids=lambda path: path.name)
def test_each_loads_on_this_machine(path: Path) -> None:
    config = ConfigLoader(path, ENVIRON).load()
    assert config.workers
    assert Path(config.state.state_file).is_relative_to(REPOSITORY / "run")


def test_the_full_file_holds_every_key() -> None:
    keys = {entry.path for entry in commented(FULL)}
    missing = {path_text(path) for path in keys_of(GuardConfig)} - {path_text(path) for path in keys}
    assert missing == set()


def test_the_full_file_tells_the_true_default_and_the_unit_of_each_key() -> None:
    told: dict[KeyPath, str] = {}
    for entry in commented(FULL):
        told.setdefault(entry.path, entry.comment)
    for path in keys_of(GuardConfig):
        name, comment, default = str(path[-1]), told[path], default_of(path)
        said = "No default" if default is PydanticUndefined else f"Default {as_written(default)}"
        assert re.search(rf"{re.escape(said)}(?=[.:,;]|$)", comment), f"{path_text(path)}: {said}? {comment}"
        unit = UNITS.get(name.rpartition("_")[2])
        if path[:2] == ("communication", "adapter_config") and name == "timeout":
            unit = "milliseconds"
        assert unit is None or re.search(rf"\(.*{unit}", comment), f"{path_text(path)}: {unit}? {comment}"


def test_what_the_example_says_of_defaults_is_true() -> None:
    config = GuardConfig()
    text = EXAMPLE.read_text(encoding="utf-8")
    assert "(health_check_interval, whose default is 5)" in text
    assert default_of(("workers", 0, "health_check_interval")) == 5.0
    assert "three bad answers" in text
    assert default_of(("workers", 0, "health_check_failures")) == 3
    assert "asked to end; the default is 10." in text
    assert default_of(("workers", 0, "stop_timeout")) == 10.0
    assert "of silence (the default is 10)" in text
    assert config.monitoring.heartbeat_timeout == 10.0
    assert len(re.findall("default is", text)) == 3


def test_the_examples_worker_beats_works_and_ends() -> None:
    [worker, *_] = [at for at in ConfigLoader(EXAMPLE, ENVIRON).load().workers if at.tasks]
    assert worker.working_dir == str(REPOSITORY)
    heard: list[str] = []
    with ZMQCommunicationAdapter(port_base=0, heartbeat_interval_s=0.02) as adapter:
        adapter.set_heartbeat_callback(heard.append)
        adapter.register_worker(worker.worker_id)
        given = {"PYTHONPATH": str(REPOSITORY), "PROCGUARD_TASKS": json.dumps(worker.tasks)}
        process = subprocess.Popen(
            [sys.executable, *worker.command[1:]],
            cwd=worker.working_dir,
            env={**os.environ, **given, **adapter.environment(worker.worker_id)},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert eventually(lambda: len(heard) >= 3)
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0
    assert output.startswith("working on shard-0, shard-1\n")


def test_the_unit_is_one_that_systemd_can_read() -> None:
    unit = ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((CONFIGS / "procguard.service").read_text(encoding="utf-8"))
    assert unit["Service"]["Type"] == "notify"
    assert unit["Service"]["ExecStart"].split()[1:2] == ["--config"]
    assert unit["Service"]["RestartPreventExitStatus"] == "2"
