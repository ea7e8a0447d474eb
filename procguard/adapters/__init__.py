"""Adapters to the outside world. Those for workers' communication are named here, and loaded when asked for.

Lazy, because a trainer's listener lives beside some of them and must not load what only a guard needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from procguard.adapters.communication import (
        CheckpointAdapter,
        CommandAnswer,
        CommunicationAdapter,
        WorkerFailure,
    )
    from procguard.adapters.memory_communication import MockCommunicationAdapter
    from procguard.adapters.zmq_communication import ZMQCommunicationAdapter
    from procguard.adapters.zmq_lighthouse import LighthouseAdapter

__all__ = [
    "CheckpointAdapter",
    "CommandAnswer",
    "CommunicationAdapter",
    "LighthouseAdapter",
    "MockCommunicationAdapter",
    "WorkerFailure",
    "ZMQCommunicationAdapter",
]

_ROOMS = {
    "LighthouseAdapter": "zmq_lighthouse",
    "MockCommunicationAdapter": "memory_communication",
    "ZMQCommunicationAdapter": "zmq_communication",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        room = import_module(f"procguard.adapters.{_ROOMS.get(name, 'communication')}")
        return getattr(room, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
