"""torchft's ``ManagerServer`` and ``ManagerClient`` as its Manager uses them, against a real lighthouse.

Without listener processes, but where one matters: ``tests/test_torchft.py`` has them all.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from procguard.adapters.torchft import LighthouseServer, ManagerClient, ManagerServer, QuorumResult
from procguard.adapters.torchft.seat import last_seen

SHORT = timedelta(milliseconds=50)
"""For what is to time out."""
LONG = timedelta(seconds=60)
"""For what is to happen."""


class Ended:
    """Stands where a process group would, and notes what a failure ends."""

    def __init__(self) -> None:
        self.quorums: list[int] = []
        self.news = threading.Condition()

    def abort(self, quorum_id: int) -> None:
        with self.news:
            self.quorums.append(quorum_id)
            self.news.notify_all()

    def wait_for(self, quorum_id: int) -> None:
        with self.news:
            assert self.news.wait_for(lambda: quorum_id in self.quorums, 60), "it was not freed"


class Groups:
    """Replica groups of one job, whose ranks ask and vote at the same time, each in a thread."""

    def __init__(self, lighthouse: LighthouseServer) -> None:
        self.lighthouse = lighthouse
        self.servers: dict[str, ManagerServer] = {}
        self.clients: dict[tuple[str, int], ManagerClient] = {}
        self._pool = ThreadPoolExecutor(16)

    def start(self, name: str, ranks: int = 1, **arguments: Any) -> None:
        self.servers[name] = ManagerServer(
            **{
                "replica_id": f"{name}:{secrets.token_hex(4)}",
                "lighthouse_addr": self.lighthouse.address(),
                "hostname": "localhost",
                "bind": "127.0.0.1:0",
                "store_addr": f"store-{name}",
                "world_size": ranks,
                "heartbeat_interval": SHORT,
                "connect_timeout": LONG,
                "quorum_retries": 0,
                **arguments,
            }
        )
        for rank in range(ranks):
            self.clients[name, rank] = ManagerClient(self.servers[name].address(), connect_timeout=LONG)

    def ask(self, name: str, rank: int = 0, step: int = 0, **arguments: Any) -> Future[QuorumResult]:
        return self._pool.submit(
            self.clients[name, rank]._quorum,
            **{
                "group_rank": rank,
                "step": step,
                "checkpoint_metadata": f"metadata-{name}-{rank}",
                "shrink_only": False,
                "timeout": LONG,
                "init_sync": True,
                "commit_failures": 0,
                "reconfigure_handle": f"handle-{name}-{rank}",
                **arguments,
            },
        )

    def vote(self, name: str, rank: int, step: int, commits: bool, timeout: timedelta = LONG) -> Future[bool]:
        return self._pool.submit(self.clients[name, rank].should_commit, rank, step, commits, timeout=timeout)

    def together(self, **steps: int) -> dict[str, QuorumResult]:
        """All of these ask until all of them are in one quorum."""
        for _ in range(1_000):
            asked = {name: self.ask(name, step=step) for name, step in steps.items()}
            results = {name: each.result(60) for name, each in asked.items()}
            if all(result.replica_world_size == len(steps) for result in results.values()):
                return results
        raise AssertionError("they never came together")

    def close(self) -> None:
        for client in self.clients.values():
            client.shutdown()
        for server in self.servers.values():
            server.shutdown()
        self._pool.shutdown()


@pytest.fixture
def lighthouse() -> Iterator[LighthouseServer]:
    server = LighthouseServer("127.0.0.1:0", 1, join_timeout_ms=60_000)
    yield server
    server.shutdown()


@pytest.fixture
def groups(lighthouse: LighthouseServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Groups]:
    monkeypatch.setenv("PROCGUARD_PROACTIVE_RECOVERY", "0")
    groups = Groups(lighthouse)
    yield groups
    groups.close()


def results(*futures: Future[Any]) -> list[Any]:
    return [future.result(60) for future in futures]


def test_a_group_alone(groups: Groups) -> None:
    groups.start("a")
    result = groups.ask("a", step=7).result(60)
    assert (result.replica_rank, result.replica_world_size) == (0, 1)
    assert (result.heal, result.recover_src_replica_rank) == (False, None)
    assert result.recover_dst_replica_ranks == []
    assert (result.max_step, result.max_replica_rank, result.max_world_size) == (7, 0, 1)
    assert result.store_address == "store-a"
    assert [name.partition(":")[0] for name in result.replica_ids] == ["a"]
    assert result.reconfigure_handles == ["handle-a-0"]
    assert groups.vote("a", 0, 7, True).result(60) is True
    assert groups.vote("a", 0, 8, False).result(60) is False


def test_who_is_behind_heals_from_who_is_not(groups: Groups) -> None:
    for name in ("a", "b"):
        groups.start(name)
    both = groups.together(a=0, b=10)
    a, b = both["a"], both["b"]
    assert a.quorum_id == b.quorum_id
    assert (a.heal, a.recover_src_replica_rank) == (True, 1)
    assert a.recover_src_manager_address == groups.servers["b"].address()
    assert (a.max_step, a.max_replica_rank, a.max_world_size, a.store_address) == (10, None, 1, "store-b")
    assert (b.heal, b.recover_dst_replica_ranks, b.max_replica_rank) == (False, [0], 0)
    source = ManagerClient(a.recover_src_manager_address, connect_timeout=LONG)
    assert source._checkpoint_metadata(0, timeout=LONG) == "metadata-b-0"


def test_in_the_first_step_all_take_over_one_state(groups: Groups) -> None:
    for name in ("a", "b"):
        groups.start(name)
    both = groups.together(a=0, b=0)
    assert [both[name].heal for name in "ab"] == [False, True]
    assert [both[name].max_world_size for name in "ab"] == [2, 2]


def test_a_new_id_is_given_when_a_step_has_failed(groups: Groups) -> None:
    groups.start("a")
    first = groups.ask("a").result(60)
    assert groups.ask("a").result(60).quorum_id == first.quorum_id
    failed = groups.ask("a", commit_failures=2).result(60)
    assert failed.quorum_id > first.quorum_id
    assert failed.commit_failures == 2


def test_ranks_ask_as_one_and_each_hears_its_own_part(groups: Groups) -> None:
    groups.start("a", ranks=2)
    first, second = results(groups.ask("a", 0, step=3), groups.ask("a", 1, step=3))
    assert (first.quorum_id, first.max_step) == (second.quorum_id, second.max_step)
    assert first.reconfigure_handles == ["handle-a-0"]
    assert second.reconfigure_handles == ["handle-a-1"]
    client = groups.clients["a", 0]
    assert [client._checkpoint_metadata(rank, LONG) for rank in (0, 1)] == ["metadata-a-0", "metadata-a-1"]
    with pytest.raises(RuntimeError, match=r"rank 2 of the group of .* has not been in a quorum so far"):
        client._checkpoint_metadata(2, LONG)


@pytest.mark.parametrize("votes", [(True, True), (True, False), (False, True), (False, False)])
def test_a_step_counts_if_it_does_for_every_rank(groups: Groups, votes: tuple[bool, bool]) -> None:
    groups.start("a", ranks=2)
    for step in range(2):  # also without a quorum before it
        verdicts = results(*[groups.vote("a", rank, step, commits) for rank, commits in enumerate(votes)])
        assert verdicts == [all(votes)] * 2


def test_a_rank_that_waits_in_vain_may_ask_and_vote_again(groups: Groups) -> None:
    groups.start("a", ranks=2)
    groups.clients["a", 1].take_seat(1)
    with pytest.raises(TimeoutError, match="no quorum within"):
        groups.ask("a", 0, timeout=SHORT).result(60)
    results(groups.ask("a", 0), groups.ask("a", 1))
    with pytest.raises(TimeoutError, match=r"not all 2 ranks of replica a:\w+ voted on step 0 within"):
        groups.vote("a", 0, 0, True, SHORT).result(60)
    assert results(groups.vote("a", 0, 0, True), groups.vote("a", 1, 0, True)) == [True, True]
    first, second = results(groups.ask("a", 0, step=1), groups.ask("a", 1, step=1))
    assert first.quorum_id == second.quorum_id


def test_who_leaves_is_no_member_of_the_next_quorum(groups: Groups) -> None:
    for name in ("a", "b"):
        groups.start(name)
    both = groups.together(a=4, b=4)
    groups.servers["b"].shutdown()
    groups.servers["b"].shutdown()
    alone = groups.ask("a", step=4).result(60)
    assert alone.quorum_id > both["a"].quorum_id
    assert (alone.replica_world_size, alone.replica_rank) == (1, 0)


def test_a_manager_that_was_shut_down_never_joins_again(groups: Groups) -> None:
    groups.start("a")
    groups.ask("a").result(60)
    groups.servers["a"].shutdown()
    with pytest.raises(RuntimeError, match=r"replica a:\w+ has been shut down"):
        groups.ask("a").result(60)
    with pytest.raises(RuntimeError, match="has been shut down"):
        groups.vote("a", 0, 0, True).result(60)
    with pytest.raises(RuntimeError, match=r"no manager answered at .* within 0\.05 s"):
        ManagerClient(groups.servers["a"].address(), connect_timeout=SHORT)


def test_a_notice_frees_those_in_a_quorum_with_who_has_gone(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROCGUARD_PROACTIVE_RECOVERY", "1")
    for name in ("a", "b"):
        groups.start(name)
    ended = Ended()
    groups.clients["a", 0].take_seat(0, ended)
    both = groups.together(a=4, b=4)
    groups.servers["b"].shutdown()
    ended.wait_for(both["a"].quorum_id)
    assert ended.quorums == [both["a"].quorum_id]


def test_of_two_groups_at_one_step_the_later_commit_is_followed(groups: Groups) -> None:
    """One had been left out while the other repeated the step with a third: their weights differ."""
    for name in ("a", "b"):
        groups.start(name)
    groups.together(a=0, b=0)
    assert results(groups.vote("a", 0, 0, True), groups.vote("b", 0, 0, False)) == [True, False]
    waits_for_a = groups.ask("b", step=0, commit_failures=1, timeout=SHORT)
    assert isinstance(waits_for_a.exception(60), TimeoutError)
    both = groups.together(a=1, b=1)  # b says that it is at step 1 too, by a checkpoint of its own
    assert (both["a"].heal, both["b"].heal) == (False, True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"bind": "nonsense"}, "bind is 'nonsense'"),
        ({"world_size": 0}, "world_size is 0"),
        ({"replica_id": ""}, "cannot be a name"),
        ({"lighthouse_addr": "http://127.0.0.1:1", "connect_timeout": SHORT}, "no lighthouse answered"),
    ],
)
def test_a_manager_that_cannot_be(groups: Groups, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        groups.start("a", **wrong)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda client: client._quorum(1, 0, "", False, timeout=LONG), "group_rank 1 of a group of 1"),
        (lambda client: client._quorum(0, -1, "", False, timeout=LONG), "step is -1"),
        (lambda client: client._quorum(0, 0, "x" * 5000, False, timeout=LONG), "checkpoint_metadata is"),
        (lambda client: client.should_commit(0, True, True, LONG), "step is True"),
        (lambda client: client._checkpoint_metadata(0, LONG), "has not been in a quorum so far"),
    ],
)
def test_calls_that_cannot_be(groups: Groups, call: Callable[[ManagerClient], object], said: str) -> None:
    groups.start("a")
    with pytest.raises(RuntimeError, match=said):
        call(groups.clients["a", 0])


def test_a_manager_listens_on_the_port_that_it_is_told(groups: Groups) -> None:
    groups.start("a")
    port = groups.servers["a"].address().rpartition(":")[2]
    with pytest.raises(RuntimeError, match=f"port {port} on 127.0.0.1 is in use"):
        groups.start("b", bind=f"127.0.0.1:{port}")
    groups.servers["a"].shutdown()
    groups.start("b", bind=f"127.0.0.1:{port}")
    assert groups.servers["b"].address() == f"http://localhost:{port}"


def test_what_was_heard_of_a_manager_is_forgotten_with_the_seat(groups: Groups) -> None:
    groups.start("a")
    address = groups.servers["a"].address()
    groups.ask("a").result(60)
    assert last_seen(address) is not None
    groups.servers["a"].shutdown()
    assert last_seen(address) is None
