"""``Manager``: fault tolerance in the train loop. One quorum, one collective, one decision a step.

::

    manager = Manager(pg=RingProcessGroup(), load_state_dict=load, state_dict=save, min_replica_size=2)
    while manager.current_step() < STEPS:
        manager.start_quorum()                   # overlaps with the forward pass
        gradients = compute()
        manager.allreduce(gradients).wait()      # never raises, ends at once when a peer dies
        if manager.should_commit():
            optimizer_step(gradients)
    manager.shutdown()

Names, order and defaults are torchft's. How a step goes is in ``replica``; here it is wired: the lighthouse
over ZeroMQ, the listener in a process of its own, checkpoints over HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from procguard.adapters.scheduling import run_promptly
from procguard.adapters.zmq import ZmqMemberTransport
from procguard.adapters.zmq_ranks import ZmqRankServer
from procguard.client import listener
from procguard.client.checkpoint import CheckpointTransport, HTTPTransport
from procguard.client.companion import Hears
from procguard.client.hosts import Host, ListenerProcess
from procguard.client.lighthouse_client import local_address_toward
from procguard.client.membership import Identity, Membership
from procguard.client.options import ManagerOptions
from procguard.client.process_group import ProcessGroup
from procguard.client.replica import Replica, Rules, WorldSizeMode
from procguard.client.witness import LifeLine
from procguard.errors import UsageError

__all__ = ["Manager", "WorldSizeMode"]

MINUTE = timedelta(seconds=60)


class Manager(Replica):
    """One replica's fault tolerance.

    Construction joins the lighthouse. Make it in the main thread: the kernel then tells of this process's
    death within a millisecond, whatever its size.

    Args:
        pg: the process group that reduces across replicas; configured anew for each quorum.
        load_state_dict, state_dict: take over and give out the train loop's state. Allowed in it: None, bool,
            int, float, str, bytes, list, tuple, dict with str or int keys, arrays and tensors.
        min_replica_size: fewer replicas than this commit no step.
        use_async_quorum: let the quorum form while the forward pass runs; a healing replica then contributes
            nothing to the step in which it heals.
        timeout: for collectives, configuration and healing: longer than the state takes to be fetched, since
            the others wait in a collective meanwhile.
        quorum_timeout: for a quorum to form.
        connect_timeout: for the lighthouse to answer at first.
        rank, world_size: of this process in its replica group; None: RANK and WORLD_SIZE, or 0 of 1.
        init_sync: before the first step all take over the state of one replica.
        max_retries: how many steps in a row may fail to commit before ``should_commit`` raises; None: any.
        quorum_retries: how often a quorum that timed out is asked for again.
        store_addr, store_port, port: of torchft's signature; not needed here, nor is PROCGUARD_MANAGER_PORT:
            rank 0 serves its group on a free port, which the others hear of from the lighthouse.
        hostname: the address peers reach this machine at; None: the one it reaches the lighthouse from.
        heartbeat_interval: accepted for torchft's sake; the lighthouse gives the interval to all.
        checkpoint_transport: None: ``HTTPTransport``.
        job_id: jobs on one lighthouse never see each other.
        proactive_recovery: None: PROCGUARD_PROACTIVE_RECOVERY, or True. False spawns no listening process,
            and no notice aborts anything: a survivor waits for its collective's own error or timeout.
        progress_timeout: declare this replica failed when it computes for longer without a sign of progress.

    Raises:
        UsageError: an argument or a variable cannot work.
        LighthouseUnreachable, LighthouseRejected: it could not join within ``connect_timeout``.
    """

    def __init__(
        self,
        pg: ProcessGroup,
        load_state_dict: Callable[[Any], None] | None,
        state_dict: Callable[[], Any] | None,
        min_replica_size: int,
        use_async_quorum: bool = True,
        timeout: timedelta = MINUTE,
        quorum_timeout: timedelta = MINUTE,
        connect_timeout: timedelta = MINUTE,
        rank: int | None = None,
        world_size: int | None = None,
        world_size_mode: WorldSizeMode = WorldSizeMode.DYNAMIC,
        store_addr: str | None = None,
        store_port: int | None = None,
        lighthouse_addr: str | None = None,
        replica_id: str | None = None,
        port: int | None = None,
        hostname: str | None = None,
        heartbeat_interval: timedelta | None = None,
        checkpoint_transport: CheckpointTransport | None = None,
        init_sync: bool = True,
        max_retries: int | None = None,
        quorum_retries: int = 0,
        *,
        job_id: str | None = None,
        proactive_recovery: bool | None = None,
        progress_timeout: timedelta | None = None,
    ) -> None:
        options = ManagerOptions.resolve(
            lighthouse_addr=lighthouse_addr,
            job_id=job_id,
            replica_id=replica_id,
            min_replica_size=min_replica_size,
            group_rank=rank,
            group_world_size=world_size,
            timeout=timeout,
            quorum_timeout=quorum_timeout,
            connect_timeout=connect_timeout,
            quorum_retries=quorum_retries,
            max_retries=max_retries,
            progress_timeout=progress_timeout,
            proactive_recovery=proactive_recovery,
            hostname=hostname,
        )
        if not isinstance(world_size_mode, WorldSizeMode):
            known = " or ".join(map(str, WorldSizeMode))
            raise UsageError(f"world_size_mode is {world_size_mode!r}; give {known}")
        rules = Rules(
            options.min_replica_size,
            use_async_quorum,
            world_size_mode,
            init_sync,
            options.timeout,
            options.quorum_timeout,
            options.quorum_retries,
            options.max_retries,
        )
        host = hostname or local_address_toward(options.lighthouse.host, options.lighthouse.port)
        transport = checkpoint_transport or HTTPTransport(options.timeout)
        try:
            super().__init__(
                rules,
                options.replica_id,
                host,
                pg,
                transport,
                load_state_dict,
                state_dict,
                partial(join, options, host),
            )
        except BaseException:
            transport.shutdown(wait=False)
            raise


def join(options: ManagerOptions, advertised: str, hears: Hears) -> Membership:
    """Become a member over ZeroMQ.

    Raises:
        LighthouseUnreachable, LighthouseRejected: it could not join within ``connect_timeout``.
    """
    host, port = options.lighthouse.host, options.lighthouse.port
    progress_timeout = options.progress_timeout or timedelta(0)
    identity = Identity(
        options.job_id,
        options.replica_id,
        options.min_replica_size,
        progress_timeout.total_seconds(),
        options.group_rank,
        options.group_world_size,
        options.group_run,
    )

    keys = options.keys
    within_group = keys.within_group() if keys else None
    secret = keys.to_text().encode() if keys else b""

    def start_process(life_line: LifeLine) -> Host:
        return ListenerProcess(partial(listener.command, host, port, life_line), life_line, secret)

    return Membership(
        identity,
        where=options.where,
        host=advertised,
        connect=lambda: ZmqMemberTransport(host, port, keys),
        connect_rank=partial(ZmqMemberTransport, keys=within_group),
        open_server=partial(ZmqRankServer, keys=keys),
        start_process=start_process if options.proactive else None,
        hears=hears,
        run_promptly=run_promptly,
        connect_timeout_s=options.connect_timeout.total_seconds(),
    )
