"""How a ring is formed: peers that are early, late or gone, and strangers on the port."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from concurrent.futures import wait
from datetime import timedelta
from typing import Any

import pytest

from procguard.adapters import collective_rendezvous
from procguard.adapters.collective import RingProcessGroup
from procguard.adapters.collective_links import Kind, Place, greet
from procguard.errors import CollectiveAborted, CollectiveError, CollectiveTimeout, UsageError
from tests.adapters.ranks import DEADLINE_S, LONG, assert_works
from tests.adapters.ring_ranks import Ranks, call_port, error_of, is_closed_by_peer, port_of


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    with Ranks() as ranks:
        yield ranks


def test_faster_ranks_wait_for_the_slower(ranks: Ranks) -> None:
    groups = ranks.connected(3)
    handles = [group.handle() for group in groups]
    early = [ranks.start(groups[rank].configure, handles, rank, 2, LONG) for rank in range(2)]
    assert not wait(early, 0.02).done
    assert groups[2].errored() is None
    groups[2].configure(handles, 2, 2, LONG)
    assert [future.result(DEADLINE_S) for future in early] == [None, None]
    assert_works(ranks, groups)


def test_a_rank_behind_is_refused(ranks: Ranks) -> None:
    groups = ranks.connected(2, quorum_id=6)
    (late,) = ranks.add(1)
    with pytest.raises(CollectiveError, match=r"quorum 0.5: rank 0 .* refused"):
        late.configure([groups[0].handle(), late.handle()], 1, 5, LONG)
    assert_works(ranks, groups)


def test_configure_times_out_and_names_the_peers(ranks: Ranks) -> None:
    groups = ranks.add(3)
    handles = [group.handle() for group in groups]
    with pytest.raises(CollectiveTimeout) as caught:
        groups[0].configure(handles, 0, 1, timedelta(milliseconds=50))
    assert f"rank 1 ({handles[1]}) to answer" in str(caught.value)
    assert f"rank 2 ({handles[2]}) to connect" in str(caught.value)
    assert isinstance(groups[0].errored(), CollectiveTimeout)


def test_a_peer_that_listens_no_more(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collective_rendezvous, "REFUSED_GRACE_S", 0.1)
    groups = ranks.add(2)
    groups[1].shutdown()
    with pytest.raises(CollectiveError, match=r"rank 1 .* refuses connections"):
        groups[0].configure([group.handle() for group in groups], 0, 1, LONG)


def test_a_failed_configure_frees_the_one_before(ranks: Ranks) -> None:
    groups = ranks.add(3)
    handles = [group.handle() for group in groups]
    blocked = [ranks.start(groups[rank].configure, handles, rank, 1, LONG) for rank in (0, 1)]
    groups[1].abort(1)  # rank 2 never comes
    assert isinstance(error_of(blocked[1]), CollectiveAborted)
    assert f"rank 1 ({handles[1]})" in str(error_of(blocked[0]))


def test_another_program_on_the_peers_port(ranks: Ranks) -> None:
    (group,) = ranks.add(1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        handle = f"127.0.0.1:{server.getsockname()[1]}"
        blocked = ranks.start(group.configure, [group.handle(), handle], 0, 1, LONG)
        visitor, _ = server.accept()
        with visitor:
            visitor.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            assert f"rank 1 ({handle}) is not a ProcGuard process group" in str(error_of(blocked))


def test_an_evicted_early_caller_calls_again(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collective_rendezvous, "EARLY_TIMEOUT_S", 0.001)
    groups = ranks.add(2)
    handles = [group.handle() for group in groups]
    early = ranks.start(groups[0].configure, handles, 0, 1, LONG)
    assert not wait([early], 0.05).done
    groups[1].configure(handles, 1, 1, LONG)
    early.result(DEADLINE_S)
    assert_works(ranks, groups)


def test_garbage_on_the_port_changes_nothing(ranks: Ranks) -> None:
    groups = ranks.add(3)
    place = Place(2, 1, tuple(group.handle() for group in groups))
    silent, talkers = [], []
    for group in groups:
        call_port(group.handle()).close()
        silent += [call_port(group.handle()) for _ in range(5)]
        silent += [call_port(group.handle(), b"PGRING\r\n\0")]  # begins well, and says no more
        talkers += [call_port(group.handle(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)]
        talkers += [call_port(group.handle(), os.urandom(4096))]
        talkers += [call_port(group.handle(), b"PGRING\r\n" + bytes(20))]
    for group in groups[:2]:  # rank 1 calls rank 2 and nobody else
        talkers.append(call_port(group.handle()))
        greet(talkers[-1], Kind.HELLO, place)
    ranks.configure(groups, 2)
    assert_works(ranks, groups)
    assert all(is_closed_by_peer(stranger) for stranger in talkers)
    assert_works(ranks, groups)
    for stranger in silent + talkers:
        stranger.close()


def test_a_flood_of_silent_callers(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collective_rendezvous, "GREETING_TIMEOUT_S", DEADLINE_S * 10)
    groups = ranks.connected(2)
    handle = groups[0].handle()
    silent = [call_port(handle) for _ in range(collective_rendezvous.CALLER_COUNT_MAX + 20)]
    ranks.configure(groups, 2)
    assert is_closed_by_peer(silent[0])  # the oldest had to go
    assert_works(ranks, groups)
    for stranger in silent:
        stranger.close()


def test_silent_callers_are_dropped(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collective_rendezvous, "GREETING_TIMEOUT_S", 0.02)
    (group,) = ranks.add(1)
    with call_port(group.handle(), b"PGRING") as silent, call_port(group.handle(), b"GET /") as browser:
        assert is_closed_by_peer(browser)
        assert is_closed_by_peer(silent)


def test_out_of_file_descriptors_for_a_while(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collective_rendezvous, "ACCEPT_PAUSE_S", 0.01)
    accept, failures = socket.socket.accept, iter([errno.EMFILE] * 5)

    def accept_later(listener: socket.socket) -> tuple[socket.socket, Any]:
        for code in failures:
            raise OSError(code, os.strerror(code))
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", accept_later)
    groups = ranks.connected(2)
    assert next(failures, None) is None
    assert_works(ranks, groups)


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_names_and_ipv6(ranks: Ranks, host: str) -> None:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if host == "::1" else socket.AF_INET).close()
    except OSError:
        pytest.skip(f"no {host} here")
    groups = ranks.add(2)
    for group in groups:
        group.advertise(host)
    ranks.configure(groups, 1)
    assert_works(ranks, groups)


def test_a_machine_without_ipv6(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    assert_works(ranks, ranks.connected(2))


def test_port_in_use(ranks: Ranks) -> None:
    (group,) = ranks.add(1)
    port = port_of(group.handle())
    with pytest.raises(UsageError, match=f"port {port}"):
        RingProcessGroup(port=port)
