"""``procguard status`` of a lighthouse: asks a running lighthouse what it knows, and prints it for people or
as JSON.

It is an observer: no token, no membership, one request and one answer over a connection of its own. What it
prints was chosen by strangers (names, causes of death), so nothing of it reaches the terminal unescaped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import datetime
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from procguard.adapters.zmq import ZmqMemberTransport
from procguard.adapters.zmq_key_files import find_person, read_member
from procguard.adapters.zmq_keys import VARIABLE as KEYS_VARIABLE
from procguard.adapters.zmq_keys import MemberKeys
from procguard.codec import decode, encode
from procguard.env import (
    LIGHTHOUSE_PORT,
    Address,
    Variable,
    found_in,
    parse_address,
    parse_name,
    parse_path,
    parse_seconds,
)
from procguard.errors import ConfigError, LighthouseError, LighthouseUnreachable, ProtocolError, UsageError
from procguard.log_lines import printable
from procguard.messages import (
    Cause,
    Incarnation,
    JobView,
    MemberState,
    MemberView,
    Message,
    NoticeView,
    QuorumId,
    QuorumWaiting,
    RankView,
    Reason,
    Snapshot,
    SnapshotRequest,
)
from procguard.plain_text import span, table

T = TypeVar("T")

VARIABLE = "PROCGUARD_LIGHTHOUSE"
WATCH_INTERVAL_S = 1.0
PATIENCE_S = 1.0
"""How long one connection is given to answer."""


# --- asking


class Target(NamedTuple):
    """The lighthouse that is asked, who said so, and the key to ask with."""

    address: Address
    origin: str
    keys: MemberKeys | None = None


def find(flag: str | None, keys: str | None = None) -> Target:
    """The address by ``--lighthouse``, or else by variable, or else the default; the key by ``--keys`` or by
    variable. Raises ``UsageError``."""
    person = _keys(keys)
    if flag:
        return Target(parsed("--lighthouse", parse_address, flag), "from --lighthouse", person)
    named = Variable(VARIABLE, parse_address).read(os.environ)
    if isinstance(named, Address):
        return Target(named, f"from {found_in(VARIABLE)}", person)
    default = Address("localhost", LIGHTHOUSE_PORT)
    return Target(default, f"the default, as {VARIABLE} is not set", person)


def _keys(flag: str | None) -> MemberKeys | None:
    origin = "--keys" if flag else KEYS_VARIABLE
    path = parsed(origin, parse_path, flag) if flag else Variable(KEYS_VARIABLE, parse_path).read(os.environ)
    if not isinstance(path, Path):
        return None
    try:
        return read_member(find_person(path))
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def ask(target: Target, job_id: str, timeout_s: float) -> Snapshot:
    """The state of one job, or of all when ``job_id`` is empty.

    Raises:
        LighthouseUnreachable: no answer in time.
        LighthouseError: an answer, but none that this version understands.
    """
    return exchange(target, SnapshotRequest(job_id), partial(_snapshot_in, target.address), timeout_s)


def exchange(target: Target, question: Message, read: Callable[[bytes], T | None], timeout_s: float) -> T:
    """Ask until ``read`` makes something of what is answered.

    Raises:
        LighthouseUnreachable: it did not, in time.
    """
    address = target.address
    with closing(ZmqMemberTransport(address.host, address.port, target.keys)) as transport:
        until = time.monotonic() + timeout_s
        while (left_s := until - time.monotonic()) > 0:
            transport.send(encode(question))
            transport.wait(min(left_s, PATIENCE_S))
            for frame in transport.receive(count_max=1):
                answer = read(frame)
                if answer is not None:
                    return answer
            transport.reconnect()  # the other of a name's addresses, perhaps
        refused = transport.explain()
    if refused:
        raise LighthouseUnreachable(f"No answer from {address} ({target.origin}): {refused}")
    raise LighthouseUnreachable(
        f"No lighthouse answered at {address} ({target.origin}) within {timeout_s:g} s. "
        "Is procguard-lighthouse running there, on this port? If on another machine, was it started with "
        f"--bind? If its address is another one, name it with --lighthouse or {VARIABLE}"
    )


def _snapshot_in(address: Address, frame: bytes) -> Snapshot:
    try:
        answer = decode(frame)
    except ProtocolError as error:
        raise LighthouseError(
            f"{address} answered what this version of procguard does not understand: {error}"
        ) from None
    if not isinstance(answer, Snapshot):
        raise LighthouseError(f"{address} answered with {type(answer).__name__} instead of Snapshot")
    return answer


# --- as JSON


def as_json(value: Any) -> Any:
    """A message as what ``json`` can write: records by field name, enums as words, ids as text."""
    if isinstance(value, (Incarnation, QuorumId)):
        return str(value)
    if isinstance(value, IntEnum):
        return value.name.lower()
    if isinstance(value, Cause):
        return {**_fields(value), "words": str(value)}
    if isinstance(value, Snapshot):
        return {**_fields(value), "counters": {counter.name: counter.value for counter in value.counters}}
    if hasattr(value, "_fields"):
        return _fields(value)
    if isinstance(value, tuple):
        return [as_json(item) for item in value]
    return value


def _fields(record: Any) -> dict[str, Any]:
    return {name: as_json(item) for name, item in zip(record._fields, record, strict=True)}


# --- as text

_WAITING = {
    Reason.NOBODY_ASKED: "nobody is asking for a quorum",
    Reason.TOO_FEW_REPLICAS: "too few replicas are asking",
    Reason.NO_MAJORITY: "those who are asking are no majority",
    Reason.PREVIOUS_MEMBERS_MISSING: "members of the last quorum have not asked yet",
    Reason.MEMBERS_MISSING: "live replicas have not asked yet",
    Reason.SETTLING: "the lighthouse has just started again and lets its members come back first",
}
_COLUMNS = ("REPLICA", "STATE", "FOR", "LAST BEAT", "STEP", "PHASE", "INCARNATION", "PROCESS")
_NUMBERS = (2, 3, 4)
"""Columns of the members' table that are aligned to the right."""


def as_text(snapshot: Snapshot, address: Address, job_id: str = "") -> str:
    """What a person wants to see of it, having asked for this job, or for all."""
    settings = snapshot.settings
    lines = [
        f"Lighthouse {address}: up for {span(snapshot.uptime_s)}, epoch {snapshot.epoch}, heartbeat every "
        f"{span(settings.heartbeat_interval_s)}, lost after {span(settings.heartbeat_timeout_s)}"
    ]
    for job in snapshot.jobs:
        lines += ["", *_job_lines(job)]
    if job_id and not snapshot.jobs:
        lines += ["", f"No job {job_id!r} here; `procguard status` without --job shows those there are"]
    elif not snapshot.jobs:
        lines += ["", f"No replicas. In each trainer: export {VARIABLE}={address}"]
    if snapshot.counters:
        lines += [
            "",
            "Since it started",
            *(f"  {counter.value:>7} {counter.name}" for counter in snapshot.counters),
        ]
    return "\n".join([printable(line) for line in lines])


def _job_lines(job: JobView) -> Iterator[str]:
    alive = sum(member.state is MemberState.ALIVE for member in job.members)
    yield f"Job {job.job_id}: {alive} of {len(job.members)} replicas alive, a quorum needs {job.min_replicas}"
    if job.quorum:
        members = ", ".join(job.quorum.replica_ids)
        yield f"  Quorum {job.quorum.quorum_id}, {span(job.quorum.age_s)} old: {members}"
    else:
        yield "  No quorum yet"
    if job.waiting:
        yield f"  Waiting: {_wait_in_words(job.waiting)}"
    yield ""
    rows = [row for member in job.members for row in _member_rows(member)]
    yield from table([_COLUMNS, *rows], _NUMBERS)
    if job.notices:
        yield ""
        yield "  Last notices"
        yield from table([_notice_row(notice) for notice in job.notices])


def _wait_in_words(waiting: QuorumWaiting) -> str:
    missing = f"; missing: {', '.join(waiting.missing)}" if waiting.missing else ""
    return f"{_WAITING[waiting.reason]}, {waiting.have} of {waiting.need}{missing}"


def _member_rows(member: MemberView) -> Iterator[tuple[str, ...]]:
    """One row for a replica of one rank; for a larger group one of the whole, and one for each rank."""
    single = member.group_world_size == 1
    state = (member.replica_id, member.state.name.lower(), span(member.in_state_s))
    if single and member.ranks:
        yield (*state, *_rank_cells(member.ranks[0], str(member.incarnation)))
        return
    there = f"{len(member.ranks)} of {member.group_world_size} ranks" if member.ranks else "not back yet"
    oldest_s = max([rank.beat_age_s for rank in member.ranks], default=member.in_state_s)
    yield (*state, span(oldest_s), str(member.step), "", str(member.incarnation), there)
    for rank in member.ranks:
        suspect = "suspect" if rank.suspect else ""
        yield (f"  rank {rank.group_rank}", suspect, "", *_rank_cells(rank, ""))


def _rank_cells(rank: RankView, incarnation: str) -> tuple[str, ...]:
    process = f"{rank.process.host}:{rank.process.pid}"
    return span(rank.beat_age_s), str(rank.step), rank.phase.name.lower(), incarnation, process


def _notice_row(view: NoticeView) -> tuple[str, ...]:
    notice = view.notice
    return (
        f"{span(view.age_s)} ago",
        notice.replica_id,
        str(notice.incarnation),
        f"step {notice.step}",
        str(notice.cause),
    )


# --- the command


def timeout_of(text: str) -> float:
    """Seconds. Raises ``UsageError``."""
    return parsed("--timeout", parse_seconds, text).total_seconds()


def parsed(flag: str, parse: Callable[[str], T], text: str) -> T:
    """What a flag says; ``UsageError`` names the flag."""
    try:
        return parse(text)
    except UsageError as error:
        raise UsageError(f"{flag}: {error}") from None


def show(
    lighthouse: str | None, job: str, keys: str | None, timeout: str, *, watch: bool, json_wanted: bool
) -> None:
    """``procguard status`` of a lighthouse; the arguments are the flags as they were written."""
    target = find(lighthouse, keys)
    job_id = parsed("--job", parse_name, job) if job else ""
    timeout_s = timeout_of(timeout)

    def shown() -> str:
        snapshot = ask(target, job_id, timeout_s)
        if json_wanted:
            return json.dumps(as_json(snapshot), indent=None if watch else 2)
        return as_text(snapshot, target.address, job_id)

    if watch:
        with suppress(KeyboardInterrupt):
            _watch(shown, redraw=not json_wanted)
    else:
        click.echo(shown())


def _watch(shown: Callable[[], str], redraw: bool) -> None:
    """Print again each second; a lighthouse that is away is a line on stderr and no end."""
    while True:
        try:
            text = shown()
        except LighthouseError as error:
            click.echo(f"{datetime.now():%H:%M:%S} {error}; still asking", err=True)
        else:
            if redraw:
                click.clear()
            click.echo(text)
        time.sleep(WATCH_INTERVAL_S)
