"""The guard's parts by the names that users know: ``from procguard.core import ProcessManager, ...``."""

from __future__ import annotations

from procguard.supervisor.health_words import HealthStatus
from procguard.supervisor.manager import ProcessManager
from procguard.supervisor.monitor import ProcessMonitor
from procguard.supervisor.recovery import FailureHandler
from procguard.supervisor.state import StateManager

__all__ = ["FailureHandler", "HealthStatus", "ProcessManager", "ProcessMonitor", "StateManager"]
