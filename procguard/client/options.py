"""What a Manager is told, by argument and by variable, made into one set of checked options.

Timeouts and retries: the variable wins, so that a running job's operator need not touch its code. Address and
ids: the argument wins, because the code knows who it is.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from procguard.adapters.zmq_key_files import find_member, read_member
from procguard.adapters.zmq_keys import VARIABLE, MemberKeys
from procguard.client.timeouts import positive
from procguard.env import Address, TrainerSettings, found_in, parse_address, parse_name
from procguard.errors import ConfigError, UsageError

DEFAULT_JOB = "default"


@dataclass(frozen=True)
class ManagerOptions:
    """Checked; times as ``timedelta``, ``None`` only where it has a meaning of its own."""

    lighthouse: Address
    where: str
    """The address and where it was set, for error messages."""
    job_id: str
    replica_id: str
    group_rank: int
    group_world_size: int
    group_run: str
    min_replica_size: int
    timeout: timedelta
    quorum_timeout: timedelta
    connect_timeout: timedelta
    quorum_retries: int
    max_retries: int | None
    progress_timeout: timedelta | None
    proactive: bool
    hostname: str | None
    keys: MemberKeys | None
    """Of this replica; None: the lighthouse asks for none."""

    @classmethod
    def resolve(
        cls,
        *,
        lighthouse_addr: str | None,
        job_id: str | None,
        replica_id: str | None,
        min_replica_size: int,
        group_rank: int | None,
        group_world_size: int | None,
        timeout: timedelta,
        quorum_timeout: timedelta,
        connect_timeout: timedelta,
        quorum_retries: int,
        max_retries: int | None,
        progress_timeout: timedelta | None,
        proactive_recovery: bool | None,
        hostname: str | None,
        environ: Mapping[str, str] = os.environ,
    ) -> ManagerOptions:
        """Combine arguments and variables. Raises ``UsageError`` naming what cannot work."""
        found = TrainerSettings.read(environ)
        lighthouse, where = _lighthouse(lighthouse_addr, found, environ)
        rank, world_size = _group(group_rank, group_world_size, found)
        proactive = proactive_recovery if proactive_recovery is not None else found.proactive_recovery
        if proactive not in (True, False, None):
            raise UsageError(f"proactive_recovery is {proactive!r}; give True, False or None")
        progress = found.progress_timeout if found.progress_timeout is not None else progress_timeout
        if progress is not None:
            progress = positive("progress_timeout", progress)
        name = _name("replica_id", replica_id) or _replica_id(found, world_size)
        retries = found.quorum_retries if found.quorum_retries is not None else quorum_retries
        return cls(
            lighthouse=lighthouse,
            where=where,
            job_id=_name("job_id", job_id) or found.job_id or DEFAULT_JOB,
            replica_id=name,
            group_rank=rank,
            group_world_size=world_size,
            group_run=_group_run(found) if world_size > 1 else "",
            min_replica_size=_count("min_replica_size", min_replica_size, least=1),
            timeout=positive("timeout", found.timeout or timeout),
            quorum_timeout=positive("quorum_timeout", found.quorum_timeout or quorum_timeout),
            connect_timeout=positive("connect_timeout", found.connect_timeout or connect_timeout),
            quorum_retries=_count("quorum_retries", retries),
            max_retries=None if max_retries is None else _count("max_retries", max_retries),
            progress_timeout=progress,
            proactive=True if proactive is None else proactive,
            hostname=None if hostname is None else _host(hostname),
            keys=_keys(found, name),
        )


def _keys(found: TrainerSettings, replica_id: str) -> MemberKeys | None:
    if found.keys is None:
        return None
    try:
        return read_member(find_member(found.keys, replica_id))
    except ConfigError as error:
        raise ConfigError(f"{VARIABLE}: {error}") from None


def _lighthouse(
    argument: str | None, found: TrainerSettings, environ: Mapping[str, str]
) -> tuple[Address, str]:
    if argument is not None:
        try:
            address = parse_address(_text("lighthouse_addr", argument))
        except UsageError as error:
            raise UsageError(f"lighthouse_addr: {error}") from None
        return address, f"{address} (given as lighthouse_addr)"
    if found.lighthouse is not None:
        return found.lighthouse, f"{found.lighthouse} (from {found_in('PROCGUARD_LIGHTHOUSE', environ)})"
    raise UsageError(
        "no lighthouse address: start one with `procguard-lighthouse --port 29510` and set "
        "PROCGUARD_LIGHTHOUSE=localhost:29510, or pass lighthouse_addr"
    )


def _group(rank: int | None, world_size: int | None, found: TrainerSettings) -> tuple[int, int]:
    """Which of how many ranks of its replica group this process is."""
    rank = rank if rank is not None else found.group_rank or 0
    world_size = world_size if world_size is not None else found.group_world_size or 1
    if _count("rank", rank) >= _count("world_size", world_size, least=1):
        raise UsageError(
            f"rank {rank} of world_size {world_size}: the ranks of a replica group count from 0 and are less "
            "than its world_size; see RANK and WORLD_SIZE, which torchrun sets"
        )
    return rank, world_size


def _group_run(found: TrainerSettings) -> str:
    """What all ranks of one run of a group call it, and no later run of it does, if it can be helped."""
    parts = []
    if found.run_id is not None:
        parts.append(f"{found.run_id}#{found.restart_count or 0}")
    if found.master_addr is not None and found.master_port is not None:
        parts.append(f"{found.master_addr}:{found.master_port}")
    if not parts:
        raise UsageError(
            "a replica group of several ranks needs a name for its run, alike on all ranks: torchrun sets "
            "one; by hand set MASTER_ADDR and MASTER_PORT"
        )
    return " ".join(parts)


def _replica_id(found: TrainerSettings, world_size: int) -> str:
    if found.replica_id is not None:
        return found.replica_id
    if found.replica_group_id is not None:
        return str(found.replica_group_id)
    if world_size > 1:
        raise UsageError(
            f"this process is one of {world_size} ranks of a replica group without a name; set "
            "REPLICA_GROUP_ID (or REPLICA_ID) alike on all its ranks, or pass replica_id"
        )
    return f"{socket.gethostname()}-{os.getpid()}"


def _name(what: str, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return parse_name(_text(what, value))
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None


def _host(value: str) -> str:
    """An IPv6 address with or without its brackets."""
    text = _text("hostname", value)
    try:
        parse_address(f"[{text}]" if ":" in text and not text.startswith("[") else text)
    except UsageError:
        raise UsageError(f"hostname is {text!r}; give a name or an address of this machine") from None
    return text


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{what} is {value!r}; give text, such as {str(value)!r}")
    return value


def _count(what: str, value: object, least: int = 0) -> int:
    if type(value) is not int or value < least:
        raise UsageError(f"{what} is {value!r}; give a whole number, {least} or more")
    return value
