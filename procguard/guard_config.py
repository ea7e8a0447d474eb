"""The guard's settings as validated models, and which of them cannot stand together.

Each section of the YAML is a model; the field names are its keys. Durations are seconds, but for
``communication.adapter_config.timeout``, which has always been milliseconds. Relations between two keys, or
two workers, are not in the models but in ``broken_rules``: so they are judged, and all told, also where
another part of the file is wrong. Must not look at the machine: files and programs are ``worker_places``'s.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from procguard.validation import KeyPath, nearest
from procguard.worker_config import PathText, PositiveSeconds, WorkerConfig, error_file_of

INTERVALS_PER_TIMEOUT_MIN = 3  # so that neither one lost beat nor two look like a death
PORT_MAX = (1 << 16) - 1
TIMEOUT_MS_MAX = 60 * 60 * 1000
WORKERS_COUNT_MAX = 10_000

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
BUILT_IN_ADAPTERS = ("mock", "zmq", "lighthouse")
ADAPTER_KEYS: Mapping[str, tuple[str, ...]] = {
    "mock": ("host", "port_base", "timeout"),  # taken and not needed, so that mock and zmq change places
    "zmq": ("host", "port_base", "timeout"),
    "lighthouse": ("host", "port_base", "timeout", "job_id", "keys"),
}
_CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_NAME_BYTES_MAX = 255


def _adapter_type(text: str) -> str:
    if text not in BUILT_IN_ADAPTERS and not _CLASS.fullmatch(text):
        raise ValueError('must be mock, zmq, lighthouse, or a class of your own as "package.module:Class"')
    return text


def _host(text: str) -> str:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in bare or not bare.strip("0123456789."):
        try:
            ipaddress.ip_address(bare)
        except ValueError:
            bare = ""
    elif not _HOST.fullmatch(bare):
        bare = ""
    if not bare:
        raise ValueError("must be a host name or an IP address, without a port, such as 127.0.0.1")
    return bare


def _level(text: str) -> str:
    if text.upper() not in LOG_LEVELS:
        raise ValueError(f"must be one of {', '.join(LOG_LEVELS)}")
    return text.upper()


def _log_format(text: str) -> str:
    """``text``, ``json``, or a format of Python's ``logging``."""
    if text not in ("text", "json"):
        try:
            logging.PercentStyle(text).validate()
        except ValueError:
            raise ValueError(
                "must be text, json, or a format of Python's logging, such as '%(asctime)s %(message)s'"
            ) from None
    return text


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Percent = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]
Host = Annotated[str, AfterValidator(_host)]
Port = Annotated[int, Field(ge=0, le=PORT_MAX)]


class MonitoringConfig(_Section):
    """How workers are watched."""

    model_config = ConfigDict(title="monitoring")

    interval: Annotated[float, Field(ge=0.01, le=3600.0, allow_inf_nan=False)] = 1.0
    heartbeat_timeout: PositiveSeconds = 10.0
    zombie_detection: bool = True
    cpu_threshold: Percent = 1.0
    memory_threshold: Percent = 1.0


class RecoveryConfig(_Section):
    """What is done when workers fail."""

    model_config = ConfigDict(title="recovery")

    enable_auto_recovery: bool = True
    stop_all_on_failure: bool = True
    task_reassignment: bool = False
    recovery_timeout: PositiveSeconds = 300.0
    """For one attempt."""
    max_recovery_attempts: Annotated[int, Field(ge=1, le=1000)] = 3


class AdapterConfig(_Section):
    """What an adapter is told. A class of one's own is given whatever stands here, as keyword arguments."""

    model_config = ConfigDict(title="adapter_config", extra="allow")

    host: Host = "127.0.0.1"
    port_base: Port | None = None
    """None: the default of the adapter."""
    timeout: Annotated[int, Field(ge=1, le=TIMEOUT_MS_MAX)] = 5000
    """Milliseconds."""


class CommunicationConfig(_Section):
    """How guard and workers talk."""

    model_config = ConfigDict(title="communication")

    adapter_type: Annotated[str, AfterValidator(_adapter_type)] = "mock"
    adapter_config: AdapterConfig = AdapterConfig()


class StateConfig(_Section):
    """Where the guard remembers."""

    model_config = ConfigDict(title="state")

    state_file: PathText = "procguard_state.json"
    auto_save: bool = True


class LoggingConfig(_Section):
    """What the guard says of itself, and where."""

    model_config = ConfigDict(title="logging")

    level: Annotated[str, AfterValidator(_level)] = "INFO"
    file: PathText | None = None
    format: Annotated[str, AfterValidator(_log_format)] = "text"


class WebConfig(_Section):
    """The HTTP server."""

    model_config = ConfigDict(title="web")

    enabled: bool = False
    host: Host = "127.0.0.1"
    port: Port = 8080


class GuardConfig(_Section):
    """All of the file; built by ``config.ConfigLoader``."""

    model_config = ConfigDict(title="the guard")

    workers: Annotated[
        tuple[WorkerConfig, ...],
        BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
        Field(max_length=WORKERS_COUNT_MAX),
    ] = ()
    monitoring: MonitoringConfig = MonitoringConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    communication: CommunicationConfig = CommunicationConfig()
    state: StateConfig = StateConfig()
    logging: LoggingConfig = LoggingConfig()
    web: WebConfig = WebConfig()


def replica_id_of(worker: WorkerConfig) -> str:
    """The member of a lighthouse that this worker is, or is a rank of: as its ``env`` says, else its id."""
    return worker.env.get("PROCGUARD_REPLICA_ID") or worker.env.get("REPLICA_ID") or worker.worker_id


# --- what cannot stand together ---


class Broken(NamedTuple):
    """Settings that each could be, and together cannot."""

    path: KeyPath
    """Of the one that a user would change first."""
    value: object
    phrase: str
    """What is wrong and what to do, to follow ``key = value``."""


def broken_rules(
    workers: Sequence[tuple[int, WorkerConfig]],
    monitoring: MonitoringConfig | None,
    communication: CommunicationConfig | None,
    recovery: RecoveryConfig | None,
    state: StateConfig | None,
    also_there: Collection[str] = (),
) -> Iterator[Broken]:
    """What is wrong between several keys.

    Args:
        workers: with their places in the file's list.
        monitoring: None where it cannot be read itself.
        communication, recovery, state: likewise.
        also_there: names of workers that cannot be read themselves: to depend on them is no mistake.
    """
    if monitoring is not None:
        yield from _timeout_too_short(monitoring)
    if communication is not None:
        yield from _unknown_adapter_keys(communication)
    if recovery is not None and state is not None:
        yield from _forgotten_moves(recovery, state)
    yield from _doubles(workers)
    yield from _mixed_outputs(workers)
    first: dict[str, int] = {}
    for index, worker in workers:
        first.setdefault(worker.worker_id, index)
    yield from _unknown_dependencies(workers, list(dict.fromkeys([*first, *also_there])))
    yield from _cycles(workers, first)
    yield from _delays(workers)


def _timeout_too_short(monitoring: MonitoringConfig) -> Iterator[Broken]:
    least_s = INTERVALS_PER_TIMEOUT_MIN * monitoring.interval
    if monitoring.heartbeat_timeout < least_s:
        yield Broken(
            ("monitoring", "heartbeat_timeout"),
            monitoring.heartbeat_timeout,
            f"must be at least {INTERVALS_PER_TIMEOUT_MIN} times monitoring.interval = "
            f"{monitoring.interval:g}, or a beat or two that come late are taken for a hang; raise it to "
            f"{least_s:g}",
        )


def _forgotten_moves(recovery: RecoveryConfig, state: StateConfig) -> Iterator[Broken]:
    if recovery.task_reassignment and not state.auto_save:
        yield Broken(
            ("state", "auto_save"),
            state.auto_save,
            "must be true where recovery.task_reassignment = true: a guard that is killed forgets who got a "
            "task, and the next one gives it to another worker too; set one of the two back",
        )


def _unknown_adapter_keys(communication: CommunicationConfig) -> Iterator[Broken]:
    kind, config = communication.adapter_type, communication.adapter_config
    try:
        config.model_dump(mode="json")
    except (ValueError, RecursionError):
        phrase = (
            "holds itself, or is nested too deeply, or holds what is no plain value; write it out plainly"
        )
        yield Broken(("communication", "adapter_config"), config.model_extra, phrase)
        return
    known = ADAPTER_KEYS.get(kind)
    for key, value in (config.model_extra or {}).items():
        path = ("communication", "adapter_config", key)
        if known is not None and key not in known:
            yield Broken(path, value, f"is not a key of the {kind} adapter; {nearest(key, list(known))}")
        elif known is not None and key == "keys" and not (isinstance(value, str) and value):
            yield Broken(path, value, "must be the path of a key file; leave it out where none is asked for")
        elif known is not None and key == "job_id" and not _is_name(value):
            yield Broken(path, value, f"must be the name of a job: text of 1 to {_NAME_BYTES_MAX} bytes")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value and 1 <= len(value.encode()) <= _NAME_BYTES_MAX


def _doubles(workers: Sequence[tuple[int, WorkerConfig]]) -> Iterator[Broken]:
    """What two workers cannot share."""
    first: dict[str, int] = {}
    owner: dict[tuple[str, str], str] = {}
    for index, worker in workers:
        earlier = first.setdefault(worker.worker_id, index)
        if earlier != index:
            yield Broken(
                ("workers", index, "worker_id"),
                worker.worker_id,
                f"is already the name of workers[{earlier}]; give one of the two another name",
            )
        for number, task in enumerate(worker.tasks):
            holder = owner.get(("task", task))
            owner.setdefault(("task", task), worker.worker_id)
            if holder is not None:
                mine = holder == worker.worker_id
                whose = "stands twice in this list" if mine else f"is a task of {holder} too"
                path = ("workers", index, "tasks", number)
                yield Broken(path, task, f"{whose}; a task is one worker's: remove one of the two")
        for key in ("pid_file", "log_file"):
            path_text = getattr(worker, key)
            holder = owner.setdefault((key, path_text), worker.worker_id) if path_text else worker.worker_id
            if holder != worker.worker_id:
                yield Broken(
                    ("workers", index, key), path_text, f"is the {key} of {holder} too; give each its own"
                )


def _mixed_outputs(workers: Sequence[tuple[int, WorkerConfig]]) -> Iterator[Broken]:
    """Two log files, each its own, of which one is, or has beside it, the other one's file for stderr."""
    owner: dict[Path, tuple[str, str]] = {}
    for index, worker in workers:
        if worker.log_file is None:
            continue
        log_file = Path(worker.log_file)
        error_file = error_file_of(log_file)
        for path, own in ((log_file, "log_file"), (error_file, "file for stderr")):
            holder, theirs = owner.setdefault(path, (worker.worker_id, own))
            if holder == worker.worker_id:
                continue
            if own != theirs or path == error_file:
                which = f"sends stderr to {str(path)!r}, which " if path == error_file else ""
                phrase = (
                    f"{which}is the {theirs} of {holder} too; "
                    "give each a name that differs in more than its ending"
                )
                yield Broken(("workers", index, "log_file"), worker.log_file, phrase)
            break  # two that log into one file are told by ``_doubles``, and their stderr goes with it


def _unknown_dependencies(workers: Sequence[tuple[int, WorkerConfig]], known: list[str]) -> Iterator[Broken]:
    there = set(known)
    for index, worker in workers:
        for number, name in enumerate(worker.depends_on):
            if name not in there:
                path = ("workers", index, "depends_on", number)
                remedy = nearest(name, known, "its workers are")
                yield Broken(path, name, f"is not a worker of this file; {remedy}")


def _cycles(workers: Sequence[tuple[int, WorkerConfig]], first: Mapping[str, int]) -> Iterator[Broken]:
    """Each circle once, named; what depends on a circle without being in it is not blamed."""
    waits_for = {worker.worker_id: set(worker.depends_on) for _, worker in workers}
    while True:
        try:
            TopologicalSorter(waits_for).prepare()
        except CycleError as error:
            circle: list[str] = list(reversed(error.args[1]))  # graphlib goes from what is waited for
            words = " -> ".join(circle)
            index = first[circle[0]]
            listed = next(worker.depends_on for at, worker in workers if at == index)
            phrase = f"closes a circle in which each waits for the next: {words}; remove one of these"
            yield Broken(("workers", index, "depends_on"), list(listed), phrase)
            for name in circle:
                waits_for.pop(name, None)
        else:
            return


def _delays(workers: Sequence[tuple[int, WorkerConfig]]) -> Iterator[Broken]:
    for index, worker in workers:
        if worker.restart_delay_max < worker.restart_delay:
            yield Broken(
                ("workers", index, "restart_delay_max"),
                worker.restart_delay_max,
                f"is less than restart_delay = {worker.restart_delay:g}, from which the delay only grows; "
                f"raise it to {worker.restart_delay:g} or more",
            )
