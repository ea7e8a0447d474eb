"""From ``communication.adapter_type`` to an adapter: one of ours by its short name, or a class by its place.

``package.module:Class`` is imported from where Python finds modules and from the working directory. It must
be a ``CommunicationAdapter``; it is made with what stands in ``adapter_config`` as keyword arguments. What is
wrong with it is said in the user's terms: this is the door through which foreign code comes in.
"""

from __future__ import annotations

import inspect
import os
import sys
from importlib import import_module
from typing import Any

from procguard.adapters.communication import CommunicationAdapter
from procguard.errors import ConfigError
from procguard.guard_config import ADAPTER_KEYS, CommunicationConfig, GuardConfig, replica_id_of

BUILT_IN = {
    "mock": "procguard.adapters.memory_communication:MockCommunicationAdapter",
    "zmq": "procguard.adapters.zmq_communication:ZMQCommunicationAdapter",
    "lighthouse": "procguard.adapters.zmq_lighthouse:LighthouseAdapter",
}


def make_adapter(config: GuardConfig) -> CommunicationAdapter:
    """The adapter that the settings ask for; not yet initialized, and without workers.

    Raises:
        ConfigError: the class cannot be found or made; says why and what to do.
    """
    communication = config.communication
    found = adapter_class(communication)
    arguments = _arguments(communication)
    if communication.adapter_type in BUILT_IN:
        taken = inspect.signature(found).parameters
        return found(**arguments, **{name: what for name, what in _beside(config).items() if name in taken})
    try:
        return found(**arguments)
    except Exception as error:  # foreign code raises what it likes; the user is told
        raise ConfigError(
            f"{_named(communication)} could not be made: {type(error).__name__}: {error}; "
            "correct communication.adapter_config, or the class"
        ) from error


def adapter_class(communication: CommunicationConfig) -> type[CommunicationAdapter]:
    """The class that the settings name, and that could be made with them.

    Raises:
        ConfigError: there is none, it is no adapter, or it does not take ``adapter_config``.
    """
    named = _named(communication)
    module_name, _, class_name = BUILT_IN.get(
        communication.adapter_type, communication.adapter_type
    ).partition(":")
    module = _imported(module_name, named)
    found = getattr(module, class_name, None)
    if found is None:
        raise ConfigError(f"{named}: the module {module_name} has no {class_name}; correct the name")
    if not (isinstance(found, type) and issubclass(found, CommunicationAdapter)):
        raise ConfigError(
            f"{named} is no CommunicationAdapter; derive it from procguard.adapters.CommunicationAdapter"
        )
    missing = sorted(found.__abstractmethods__)
    if missing:
        raise ConfigError(f"{named} lacks {', '.join(missing)}; write what procguard.adapters says of them")
    try:
        inspect.signature(found).bind(**_arguments(communication))
    except TypeError as error:
        raise ConfigError(
            f"{named} cannot be made with communication.adapter_config: {error}; "
            "the keys there are the class's keyword arguments"
        ) from None
    return found


def _beside(config: GuardConfig) -> dict[str, Any]:
    """What other sections say to our own adapters; each takes what concerns it."""
    return {
        "heartbeat_interval_s": config.monitoring.interval,
        "heartbeat_timeout_s": config.monitoring.heartbeat_timeout,
        "replica_ids": {worker.worker_id: replica_id_of(worker) for worker in config.workers},
    }


def _named(communication: CommunicationConfig) -> str:
    return f"communication.adapter_type = {communication.adapter_type!r}"


def _imported(module_name: str, named: str) -> Any:
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        return import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{named}: there is no module {error.name!r} in {here} or where Python looks; "
            "install it, or set PYTHONPATH"
        ) from None
    except Exception as error:  # a foreign module raises what it likes; the user is told
        raise ConfigError(f"{named}: importing it failed: {type(error).__name__}: {error}") from error
    finally:
        if added:
            sys.path.remove(here)


def _arguments(communication: CommunicationConfig) -> dict[str, Any]:
    """What the class is made with: of a class of one's own exactly what stands in the file."""
    config = communication.adapter_config
    given = config.model_dump(exclude_unset=True)
    known = ADAPTER_KEYS.get(communication.adapter_type)
    return given if known is None else {key: value for key, value in given.items() if value is not None}
