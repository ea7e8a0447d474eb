"""The monitor's settings and a worker's own, checked, and the rules that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from procguard.errors import UsageError
from procguard.supervisor import probes
from procguard.supervisor.health_words import Rules, UrlRule
from procguard.supervisor.url_checks import checked_url
from procguard.worker_config import WorkerConfig, parse_worker

NOTIFYING = "notify"
"""The ``worker_type`` that promises ``READY=1``, as ``Type=notify`` does to systemd."""


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """Seconds and percent; raises ``UsageError`` for what cannot work."""

    monitoring_interval: float
    heartbeat_timeout: float
    zombie_detection: bool
    cpu_threshold: float
    memory_threshold: float

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "zombie_detection":
                if not isinstance(value, bool):
                    raise UsageError(f"zombie_detection: {value!r} is neither True nor False")
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            is_time = each.name in ("monitoring_interval", "heartbeat_timeout")
            if not number or value < 0 or (is_time and value == 0):
                wanted = "seconds, such as 1.0" if is_time else "percent, such as 1.0"
                raise UsageError(
                    f"{each.name}: {value!r} cannot be used; write a positive number of {wanted}"
                )

    def rules(self, config: WorkerConfig) -> Rules:
        """What is asked of this worker; raises ``UsageError`` for a URL that cannot be asked."""
        url = None
        if config.health_check_url is not None:
            checked_url(config.health_check_url)
            url = UrlRule(
                config.health_check_interval, config.health_check_timeout, config.health_check_failures
            )
        return Rules(
            heartbeat_timeout_s=self.heartbeat_timeout,
            start_period_s=config.start_period,
            stop_timeout_s=config.stop_timeout,
            ready_expected=config.worker_type == NOTIFYING,
            idle_fails=self.zombie_detection,
            cpu_threshold_percent=self.cpu_threshold,
            memory_threshold_bytes=self.memory_threshold / 100.0 * probes.MEMORY_BYTES,
            sample_interval_s=self.monitoring_interval,
            url=url,
        )


def checked_config(worker_id: str, given: WorkerConfig | Mapping[str, Any] | None) -> WorkerConfig:
    """The settings of a worker that may have been registered by name alone.

    A command is not asked for: the worker may run already, or on another machine. Raises ``UsageError``.
    """
    if isinstance(given, WorkerConfig):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise UsageError(
            f"{worker_id}: {given!r} is no worker's settings; pass a mapping with the YAML's keys, or {{}}"
        )
    return parse_worker(worker_id, {"command": ("-",), **(given or {})})
