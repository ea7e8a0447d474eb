"""How the classes here reach a lighthouse and become members: what ``client.manager`` does for its own
Manager.

torchft's classes take an address and a name; the job, the keys and whether notices are heard come from the
variables that every trainer of ProcGuard obeys.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from procguard.adapters.torchft.manager_words import Described
from procguard.adapters.zmq_key_files import find_member, read_member
from procguard.adapters.zmq_keys import VARIABLE, MemberKeys
from procguard.client.companion import Hears
from procguard.client.lighthouse_client import local_address_toward
from procguard.client.manager import join
from procguard.client.membership import Membership
from procguard.client.options import DEFAULT_JOB, ManagerOptions
from procguard.env import Address, TrainerSettings, parse_address
from procguard.errors import ConfigError, UsageError

UNLIMITED = timedelta(days=1)
"""For options that nothing here waits by."""


@dataclass(frozen=True)
class Way:
    """To one job of one lighthouse."""

    address: Address
    where: str
    """The address as error messages name it."""
    job_id: str
    keys: MemberKeys | None


def way_to(address: str, replica_id: str = "") -> Way:
    """The way to a lighthouse, as the variables have it.

    Raises:
        UsageError: no address, or a variable that cannot work.
    """
    if not isinstance(address, str):
        raise UsageError(f"the lighthouse's address is {address!r}; give text, such as 'http://host:29510'")
    found = TrainerSettings.read()
    parsed = parse_address(address)
    return Way(parsed, str(parsed), found.job_id or DEFAULT_JOB, _keys(found, replica_id))


def _keys(found: TrainerSettings, replica_id: str) -> MemberKeys | None:
    """torchft puts a new UUID behind each replica's name; the key is the replica's."""
    if found.keys is None:
        return None
    try:
        return read_member(find_member(found.keys, replica_id.partition(":")[0]))
    except ConfigError as error:
        raise ConfigError(f"{VARIABLE}: {error}") from None


def become_member(group: Described, group_rank: int, connect_timeout_s: float, hears: Hears) -> Membership:
    """Take one rank's place in its replica group.

    Raises:
        LighthouseUnreachable, LighthouseRejected: it could not join within ``connect_timeout_s``.
        UsageError: a variable that cannot work.
    """
    way = way_to(group.lighthouse, group.replica_id)
    proactive = TrainerSettings.read().proactive_recovery
    options = ManagerOptions(
        lighthouse=way.address,
        where=way.where,
        job_id=way.job_id,
        replica_id=group.replica_id,
        group_rank=group_rank,
        group_world_size=group.world_size,
        group_run=group.run if group.world_size > 1 else "",
        min_replica_size=0,  # the lighthouse's own: torchft's managers do not ask for more
        timeout=UNLIMITED,
        quorum_timeout=UNLIMITED,
        connect_timeout=timedelta(seconds=connect_timeout_s),
        quorum_retries=0,
        max_retries=None,
        progress_timeout=None,
        proactive=proactive is not False,
        hostname=None,
        keys=way.keys,
    )
    return join(options, local_address_toward(way.address.host, way.address.port), hears)
