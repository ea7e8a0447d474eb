"""``procguard kill`` of a lighthouse: an operator ends a replica's incarnation.

Its group is told, and it has to join again.

Who may say so is decided by the lighthouse, by the key of the connection. The incarnation is looked up first
and named, so that a request that is sent twice never ends the life that came after.
"""

from __future__ import annotations

import json

import click

from procguard.adapters.zmq_keys import VARIABLE
from procguard.codec import decode
from procguard.env import parse_name
from procguard.errors import LighthouseRejected, LighthouseUnreachable, ProtocolError, UsageError
from procguard.messages import JobView, Kill, Killed, KillResult, MemberState, MemberView, Snapshot
from procguard.status import Target, ask, exchange, find, parsed, timeout_of

NAMES_SHOWN_MAX = 20
KEYS_NEEDED = (
    "needs an operator's key: make one with `procguard keys add DIR NAME --operator` where the lighthouse's "
    f"--keys are, and name its file with --keys or {VARIABLE}"
)


def choose(snapshot: Snapshot, replica_id: str, job_id: str) -> tuple[str, MemberView]:
    """The living member that is meant, and its job.

    Raises:
        UsageError: there is none of that name, or one in several jobs.
    """
    found = [
        (job.job_id, member)
        for job in snapshot.jobs
        for member in job.members
        if member.replica_id == replica_id and job_id in ("", job.job_id)
    ]
    living = [(job, member) for job, member in found if member.state <= MemberState.SUSPECT]
    if len(living) == 1:
        return living[0]
    if living:
        jobs = ", ".join(job for job, _ in living)
        raise UsageError(f"replica {replica_id} is in several jobs ({jobs}): name one with --job")
    if found:
        job, member = found[0]
        state = member.state.name.lower()
        raise UsageError(f"replica {replica_id} of job {job} has {state} already: {member.cause}")
    where = f"in job {job_id}" if job_id else "in any job"
    raise UsageError(f"no replica {replica_id} {where}; there is {_names(snapshot.jobs, job_id)}")


def _names(jobs: tuple[JobView, ...], job_id: str) -> str:
    names = [
        f"{member.replica_id} (job {job.job_id})"
        for job in jobs
        for member in job.members
        if job_id in ("", job.job_id) and member.state <= MemberState.SUSPECT
    ]
    more = f" and {len(names) - NAMES_SHOWN_MAX} more" if len(names) > NAMES_SHOWN_MAX else ""
    return ", ".join(names[:NAMES_SHOWN_MAX]) + more if names else "nobody"


def end(target: Target, kill: Kill, timeout_s: float) -> KillResult:
    """Say it until it is answered.

    Raises:
        LighthouseUnreachable: it was not, in time.
    """
    try:
        return exchange(target, kill, _result_in, timeout_s)
    except LighthouseUnreachable as error:
        text = f"Whether the replica was ended is not known; see `procguard status`, or ask again. {error}"
        raise LighthouseUnreachable(text) from None


def _result_in(frame: bytes) -> KillResult | None:
    try:
        answer = decode(frame)
    except ProtocolError:
        return None
    return answer.result if isinstance(answer, Killed) else None


def end_replica(
    replica_id: str, job: str, lighthouse: str | None, keys: str | None, timeout: str, *, json_wanted: bool
) -> None:
    """``procguard kill`` of a lighthouse; the arguments are the flags as they were written."""
    name = parsed("REPLICA", parse_name, replica_id)
    target = find(lighthouse, keys)
    if target.keys is None:
        raise UsageError(f"procguard kill {KEYS_NEEDED}")
    wanted_job = parsed("--job", parse_name, job) if job else ""
    snapshot = ask(target, wanted_job, timeout_s := timeout_of(timeout))
    job_id, member = choose(snapshot, name, wanted_job)
    result = end(target, Kill(job_id, name, member.incarnation), timeout_s)
    if result is KillResult.NOT_ALLOWED:
        raise LighthouseRejected(
            f"the lighthouse at {target.address} refused: {target.keys.role} {target.keys.name} "
            f"({target.keys.origin}) is no operator. procguard kill {KEYS_NEEDED}"
        )
    if result is KillResult.UNKNOWN:
        raise LighthouseRejected(f"replica {name} has gone from the lighthouse at {target.address} meanwhile")
    if json_wanted:
        ended = {"job_id": job_id, "replica_id": name, "incarnation": str(member.incarnation)}
        click.echo(json.dumps(ended, indent=2))
    else:
        click.echo(f"Replica {name} of job {job_id}: incarnation {member.incarnation} is over")
