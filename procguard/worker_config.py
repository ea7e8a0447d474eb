"""What a worker is told to be: one entry of the YAML's ``workers``, validated.

The field names are the YAML's keys, so that an error can name what the user has written. Durations are
seconds. Built by ``config`` from a file and by ``ProcessManager.register_worker_config`` from a mapping.
"""

from __future__ import annotations

import shlex
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

DAY_S = 24 * 60 * 60.0

Seconds = Annotated[float, Field(ge=0.0, le=DAY_S, allow_inf_nan=False, strict=False)]
PositiveSeconds = Annotated[float, Field(gt=0.0, le=DAY_S, allow_inf_nan=False, strict=False)]
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]*$")]


def _words(command: Any) -> Any:
    """A line is split as a shell splits it; nothing else of a shell happens to it."""
    return tuple(shlex.split(command)) if isinstance(command, str) else _tuple(command)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class LogRotation(BaseModel):
    """When a worker's log file begins anew, and how many old ones are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_bytes: Annotated[int, Field(ge=4096)] = 64 << 20
    backups: Annotated[int, Field(ge=0, le=1000)] = 3


class WorkerConfig(BaseModel):
    """One worker; ``configs/procguard_config.yaml`` explains each key."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    worker_id: Name
    command: Annotated[tuple[str, ...], BeforeValidator(_words), Field(min_length=1)]
    working_dir: str | None = None
    env: dict[str, str] = {}
    pid_file: str | None = None
    worker_type: str = "process"
    max_restarts: Annotated[int, Field(ge=0)] = 5
    restart_window: PositiveSeconds = 300.0
    restart_delay: Seconds = 1.0
    restart_delay_max: Seconds = 60.0
    restart: Literal["on_failure", "always", "never"] = "on_failure"
    health_check_url: str | None = None
    health_check_interval: PositiveSeconds = 5.0
    health_check_timeout: PositiveSeconds = 2.0
    health_check_failures: Annotated[int, Field(ge=1)] = 3
    stop_signal: str = "SIGTERM"
    stop_timeout: Seconds = 10.0
    start_period: Seconds = 30.0
    depends_on: Annotated[tuple[Name, ...], BeforeValidator(_tuple)] = ()
    tasks: Annotated[tuple[str, ...], BeforeValidator(_tuple)] = ()
    log_file: str | None = None
    log_rotation: LogRotation = LogRotation()
    on_supervisor_death: Literal["keep", "kill"] = "keep"
