"""What a worker is told to be: one entry of the YAML's ``workers``, validated.

The field names are the YAML's keys, so that an error can name what the user has written. Durations are
seconds. Built by ``config`` from a file and by ``ProcessManager.register_worker_config`` from a mapping
(``parse_worker``). What must exist on this machine for it to start is asked in ``worker_places``.
"""

from __future__ import annotations

import difflib
import re
import shlex
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from procguard.errors import UsageError
from procguard.validation import validated

DAY_S = 24 * 60 * 60.0
WORDS_COUNT_MAX = 4096
NAMES_COUNT_MAX = 10_000
VARIABLES_COUNT_MAX = 1000
TASK_BYTES_MAX = 1024

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
STOP_SIGNALS = {number.name for number in signal.Signals} - {"SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP"}
"""Names that may be asked for; those left out end no process."""


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _words(command: Any) -> Any:
    """A line is split as a shell splits it; nothing else of a shell happens to it."""
    if not isinstance(command, str):
        return _tuple(command)
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"cannot be split into words ({str(error).lower()}); close what is open") from None
    if not words:
        raise ValueError("is empty; write what to run, such as python train.py")
    return tuple(words)


def _program_named(command: tuple[str, ...]) -> tuple[str, ...]:
    if not command or not command[0]:
        raise ValueError("names no program; write what to run, such as [python, train.py]")
    if any("\0" in word for word in command):
        raise ValueError("holds a NUL character, which no program can be given; remove it")
    return command


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(
            "cannot be a name; write 1 to 128 letters, digits, and _ . : - after the first, such as trainer-0"
        )
    return text


def _task(text: str) -> str:
    if not text or "\0" in text or len(text.encode(errors="replace")) > TASK_BYTES_MAX:
        raise ValueError(f"cannot be a task; write 1 to {TASK_BYTES_MAX} bytes without NUL, such as shard-0")
    return text


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("must be a path; leave the key out or write null where none is meant")
    return text


def _variables(env: dict[str, str]) -> dict[str, str]:
    for name, value in env.items():
        if not _VARIABLE.fullmatch(name):
            raise ValueError(
                f"has the name {name!r}, which no variable can have; write letters, digits and _"
            )
        if "\0" in value:
            raise ValueError(f"gives {name} a NUL character; remove it")
    return env


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, brackets left open
        whole = False
    if not whole:
        raise ValueError("must be an http or https URL, such as http://127.0.0.1:8000/health")
    return text


def _signal_name(text: str) -> str:
    """``TERM`` and ``sigterm`` are what ``kill`` takes for ``SIGTERM``."""
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    if name not in STOP_SIGNALS:
        near = difflib.get_close_matches(name, sorted(STOP_SIGNALS), n=1)
        remedy = f"did you mean {near[0]}?" if near else "write SIGTERM, SIGINT, SIGQUIT, SIGUSR1 or SIGKILL"
        raise ValueError(f"is not a signal that ends a process; {remedy}")
    return name


Seconds = Annotated[float, Field(ge=0.0, le=DAY_S, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0.0, le=DAY_S, allow_inf_nan=False)]
Name = Annotated[str, AfterValidator(_name)]
PathText = Annotated[str, AfterValidator(_path)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_tuple), Field(max_length=NAMES_COUNT_MAX)]


class LogRotation(BaseModel):
    """When a worker's log file begins anew, and how many old ones are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, title="log_rotation")

    max_bytes: Annotated[int, Field(ge=4096)] = 64 << 20
    backups: Annotated[int, Field(ge=0, le=1000)] = 3


class WorkerConfig(BaseModel):
    """One worker; ``configs/procguard_config.yaml`` explains each key."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, title="a worker")

    worker_id: Annotated[Name, Field(examples=["trainer-0"])]
    command: Annotated[
        tuple[str, ...],
        BeforeValidator(_words),
        AfterValidator(_program_named),
        Field(max_length=WORDS_COUNT_MAX, examples=["python train.py"]),
    ]
    working_dir: PathText | None = None
    env: Annotated[dict[str, str], AfterValidator(_variables), Field(max_length=VARIABLES_COUNT_MAX)] = {}
    pid_file: PathText | None = None
    worker_type: Literal["process", "notify"] = "process"
    """``notify``: it says READY=1 on NOTIFY_SOCKET once it is well."""
    max_restarts: Annotated[int, Field(ge=0)] = 5
    restart_window: PositiveSeconds = 300.0
    restart_delay: Seconds = 1.0
    restart_delay_max: Seconds = 60.0
    restart: Literal["on_failure", "always", "never"] = "on_failure"
    health_check_url: Annotated[str, AfterValidator(_url)] | None = None
    health_check_interval: PositiveSeconds = 5.0
    health_check_timeout: PositiveSeconds = 2.0
    health_check_failures: Annotated[int, Field(ge=1)] = 3
    stop_signal: Annotated[str, AfterValidator(_signal_name)] = "SIGTERM"
    stop_timeout: Seconds = 10.0
    start_period: Seconds = 30.0
    depends_on: Names = ()
    takes_tasks: bool = True
    """Whether it may be given the tasks of a worker that failed."""
    tasks: Annotated[
        tuple[Annotated[str, AfterValidator(_task)], ...],
        BeforeValidator(_tuple),
        Field(max_length=NAMES_COUNT_MAX),
    ] = ()
    log_file: PathText | None = None
    log_rotation: LogRotation = LogRotation()
    on_supervisor_death: Literal["keep", "kill"] = "keep"


def error_file_of(log_file: Path) -> Path:
    """Where stderr goes when stdout goes to ``log_file``: ``x.err`` beside ``x.log``."""
    beside = log_file.with_suffix(".err")
    return beside if beside != log_file else log_file.with_name(log_file.name + ".err")


def parse_worker(worker_id: str, config: WorkerConfig | Mapping[str, Any]) -> WorkerConfig:
    """The settings of one worker, as given from Python.

    Args:
        config: the YAML's keys; ``worker_id`` may be left out.

    Raises:
        UsageError: a line for each key that cannot be.
    """
    if isinstance(config, WorkerConfig):
        if config.worker_id != worker_id:
            raise UsageError(
                f"{worker_id}: its settings say worker_id = {config.worker_id!r}; make them the same"
            )
        return config
    if not isinstance(config, Mapping):
        raise UsageError(f"{worker_id}: {type(config).__name__} is no mapping of settings")
    found, problems = validated(WorkerConfig, {"worker_id": worker_id, **config}, lambda path: "")
    if found is None:
        raise UsageError("\n".join(f"{worker_id}: {problem}" for problem in problems))
    return parse_worker(worker_id, found)
