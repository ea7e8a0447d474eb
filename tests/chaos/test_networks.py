"""Trainers on hosts of their own, and a network between them that loses, delays, is cut or has a hole.

Skipped, with the reason, where this machine can make no such hosts.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from procguard.messages import MemberState
from tests.chaos.network import CUT, FINE, Network, Weather, why_not
from tests.job import Job, Trainer

LIGHTHOUSE = "lighthouse"
HOSTS = ("a", "b", "c")
STEPS = 15
LOSSY = Weather(loss=0.01, delay_s=0.02, jitter_s=0.02)
HOLE = Weather(hole_bytes=200)
"""Beats pass, and acknowledgements. Quorums do not."""
HOLE_S = 2.5

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network(LIGHTHOUSE, *HOSTS) as network:
        yield network


@pytest.fixture(scope="module")
def hosts_job(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    with Job(tmp_path_factory.mktemp("networks"), "--bind=0.0.0.0", "--insecure") as job:
        job.address = f"{network.address(LIGHTHOUSE)}:{job.port}"
        job.places = {name: network.on(name) for name in HOSTS}
        job.fill(*HOSTS)
        yield job
        network.everywhere(FINE)


@pytest.fixture
def job(network: Network, hosts_job: Job) -> Iterator[Job]:
    network.everywhere(FINE)
    hosts_job.fill(*HOSTS)
    yield hosts_job
    network.everywhere(FINE)
    hosts_job.fill(*HOSTS)
    hosts_job.check()


@pytest.fixture
def trio(job: Job) -> list[Trainer]:
    return job.fill(*HOSTS)


def committed(trainer: Trainer) -> int:
    return len(trainer.said("step", committed=True))


def test_it_is_the_network_that_they_talk_over(network: Network, job: Job, trio: list[Trainer]) -> None:
    before = network.passed
    job.trains(*trio)
    assert network.passed > before
    addresses = {member.ranks[0].process.pid: name for name, member in job.members().items()}
    assert addresses == {trainer.pid: trainer.replica_id for trainer in trio}


def test_loss_and_delay_cost_time_and_nothing_else(network: Network, job: Job, trio: list[Trainer]) -> None:
    before = [(trainer.incarnation, len(trainer.said("step", committed=False))) for trainer in trio]
    steps = [committed(trainer) for trainer in trio]
    network.everywhere(LOSSY)
    job.until(
        lambda: all(committed(t) > n + STEPS for t, n in zip(trio, steps, strict=True)), "all have trained"
    )
    assert network.dropped > 0
    network.everywhere(FINE)
    job.trains(*trio)
    assert [(t.incarnation, len(t.said("step", committed=False))) for t in trio] == before


@pytest.mark.parametrize(
    ("origin", "target"), [("c", LIGHTHOUSE), (LIGHTHOUSE, "c")], ids=["what it says", "what it hears"]
)
def test_a_host_that_is_cut_off_one_way_is_given_up_and_comes_back(
    network: Network, job: Job, trio: list[Trainer], origin: str, target: str
) -> None:
    *survivors, victim = trio
    victim.struck.append(victim.incarnation)
    network.between(origin, target, CUT)
    (cause,) = job.told(victim, survivors)
    assert cause.startswith("heartbeat timed out")
    job.trains(*survivors)
    assert job.members()["c"].state is MemberState.FAILED
    network.between(origin, target, FINE)
    job.trains(*trio)
    assert victim.incarnation not in victim.struck


def test_a_hole_for_long_packets_stops_the_job_and_kills_nobody(
    network: Network, job: Job, trio: list[Trainer]
) -> None:
    before = [trainer.incarnation for trainer in trio]
    dropped = network.dropped
    network.between("c", LIGHTHOUSE, HOLE)
    begun_at_s = job.snapshot().uptime_s
    job.until(lambda: job.snapshot().uptime_s > begun_at_s + HOLE_S, "the hole has lasted for a while")
    assert network.dropped > dropped
    assert [member.state for member in job.members().values()] == [MemberState.ALIVE] * len(trio)
    network.everywhere(FINE)
    job.trains(*trio)
    assert [trainer.incarnation for trainer in trio] == before


def test_everyone_is_cut_off_for_a_moment_and_nobody_is_blamed(
    network: Network, job: Job, trio: list[Trainer]
) -> None:
    """Shorter than the lease: what was lost is sent again."""
    before = [(trainer.incarnation, len(trainer.said("step", committed=False))) for trainer in trio]
    network.everywhere(CUT)
    begun_at_s = job.snapshot().uptime_s  # on this machine itself, which nothing cuts off
    job.until(lambda: job.snapshot().uptime_s > begun_at_s + 0.3, "a moment has passed")
    network.everywhere(FINE)
    job.trains(*trio)
    assert [(t.incarnation, len(t.said("step", committed=False))) for t in trio] == before
