"""torchft's ``LighthouseServer`` and ``LighthouseClient`` as their callers see them, over real sockets."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from procguard.adapters.torchft import LighthouseClient, LighthouseServer, Quorum, QuorumMember, Timestamp
from procguard.adapters.torchft import lighthouse_server as server_room

SHORT = timedelta(milliseconds=50)
"""For what is to time out."""
LONG = timedelta(seconds=60)
"""For what is to happen."""


@pytest.fixture
def lighthouse() -> Iterator[LighthouseServer]:
    server = LighthouseServer(bind="127.0.0.1:0", min_replicas=1)
    yield server
    server.shutdown()


@pytest.fixture
def client(lighthouse: LighthouseServer) -> LighthouseClient:
    return LighthouseClient(lighthouse.address(), connect_timeout=LONG)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def names(quorum: Quorum) -> list[str]:
    return [member.replica_id for member in quorum.participants]


def test_a_quorum_tells_the_others_all_that_its_member_gave(client: LighthouseClient) -> None:
    before = time.time()
    quorum = client.quorum(
        "a",
        LONG,
        address="here",
        store_address="there:1/x",
        step=3,
        world_size=2,
        shrink_only=True,
        data={"k": [1, 2.5, None, {"deep": "é"}]},
    )
    assert quorum.participants == [
        QuorumMember("a", "here", "there:1/x", 3, 2, True, {"k": [1, 2.5, None, {"deep": "é"}]})
    ]
    assert type(quorum.quorum_id) is int and quorum.quorum_id > 0
    assert type(quorum.created) is Timestamp
    assert before - 1 <= quorum.created.seconds + quorum.created.nanos / 1e9 <= time.time() + 1


def test_what_is_not_given_is_empty(client: LighthouseClient) -> None:
    assert client.quorum(replica_id="a", timeout=LONG).participants == [
        QuorumMember("a", "", "", 0, 0, False, None)
    ]


def test_keys_that_are_no_text_become_it(client: LighthouseClient) -> None:
    assert client.quorum("a", LONG, data={1: 2}).participants[0].data == {"1": 2}


def test_the_id_of_a_quorum_stays_until_its_members_change(
    client: LighthouseClient, pool: ThreadPoolExecutor
) -> None:
    first = client.quorum("a", LONG)
    assert client.quorum("a", LONG).quorum_id == first.quorum_id
    client.heartbeat("b")  # from now on it is waited for, as long as it lives
    both = answered(lambda: client.quorum("a", LONG), pool.submit(client.quorum, "b", LONG))
    assert both.quorum_id > first.quorum_id
    assert names(both) == ["a", "b"]


def test_too_few_replicas_is_a_timeout_that_says_so(pool: ThreadPoolExecutor) -> None:
    server = LighthouseServer("127.0.0.1:0", 2, join_timeout_ms=50)
    try:
        client = LighthouseClient(server.address(), LONG)
        with pytest.raises(TimeoutError, match="too few replicas: 1 of 2"):
            client.quorum("a", timedelta(seconds=1))  # it says twice a second what it waits for
        other = pool.submit(client.quorum, "b", LONG)
        assert names(client.quorum("a", LONG)) == names(other.result(60)) == ["a", "b"]
    finally:
        server.shutdown()


def test_shrink_only_keeps_a_newcomer_out(client: LighthouseClient, pool: ThreadPoolExecutor) -> None:
    client.quorum("a", LONG)
    newcomer = pool.submit(client.quorum, "b", LONG)
    assert names(client.quorum("a", LONG, shrink_only=True)) == ["a"]
    assert names(answered(lambda: client.quorum("a", LONG), newcomer)) == ["a", "b"]


def answered(again: Callable[[], Quorum], waiting: Future[Quorum]) -> Quorum:
    """Ask again and again until the other is answered too, which it is with us."""
    while not waiting.done():
        again()
    return waiting.result()


def test_who_beats_lives_and_who_does_not_is_no_member_any_more() -> None:
    server = LighthouseServer("127.0.0.1:0", 1, join_timeout_ms=60_000, heartbeat_timeout_ms=200)
    try:
        client = LighthouseClient(server.address(), LONG)
        client.heartbeat("silent", timeout=LONG)
        assert names(client.quorum("a", LONG)) == ["a"]  # it has waited for the other's end, not for a minute
        client.heartbeat("silent")  # and so it lives again
        assert "silent" in names(client.quorum("silent", LONG))
    finally:
        server.shutdown()


def test_one_name_is_one_member_whoever_speaks_for_it(lighthouse: LighthouseServer) -> None:
    one, other = (LighthouseClient(lighthouse.address(), LONG) for _ in range(2))
    one.heartbeat("a")
    first = other.quorum("a", LONG)
    assert one.quorum("a", LONG).quorum_id == first.quorum_id
    assert names(other.quorum("a", LONG)) == ["a"]


def test_nobody_at_that_address() -> None:
    with pytest.raises(
        RuntimeError, match=r"no lighthouse answered at 127.+ within 0\.05 s: nothing listens"
    ):
        LighthouseClient("http://127.0.0.1:1", connect_timeout=SHORT)
    with pytest.raises(RuntimeError, match="'garbage::' is not an address"):
        LighthouseClient("garbage::", connect_timeout=SHORT)


def test_a_lighthouse_that_has_gone_is_a_timeout(
    lighthouse: LighthouseServer, client: LighthouseClient
) -> None:
    client.heartbeat("a")
    lighthouse.shutdown()
    lighthouse.shutdown()
    with pytest.raises(TimeoutError, match="no quorum within"):
        client.quorum("a", SHORT)
    with pytest.raises(TimeoutError, match="no lighthouse answered"):
        client.heartbeat("b", SHORT)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"step": -1}, "step is -1"),
        ({"world_size": "2"}, "world_size is '2'"),
        ({"address": "x" * 5000}, "address is"),
        ({"store_address": 7}, "store_address is"),
        ({"data": {"k": object()}}, "data cannot be sent"),
        ({"replica_id": ""}, "cannot be a name"),
    ],
)
def test_arguments_that_cannot_be_sent(client: LighthouseClient, wrong: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = {"replica_id": "a", "timeout": LONG, **wrong}
    with pytest.raises(RuntimeError, match=said):
        client.quorum(**arguments)


def test_a_time_is_a_timedelta(client: LighthouseClient) -> None:
    with pytest.raises(TypeError, match="timeout is 5; give a"):
        client.quorum("a", 5)  # type: ignore[arg-type]


def test_the_callers_word_on_where_to_listen_is_obeyed_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = LighthouseServer("[::]:0", 1)
    (record,) = [r for r in caplog.records if r.name == server_room.__name__]
    assert record.levelno == logging.WARNING
    assert "LighthouseServer(bind='[::]:0') listens beyond this machine" in record.getMessage()
    LighthouseClient(server.address(), LONG).heartbeat("a")
    server.shutdown()


def test_within_this_machine_there_is_nothing_to_warn_of(
    lighthouse: LighthouseServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert not [r for r in caplog.records if r.name == server_room.__name__]
    assert lighthouse.address().startswith("http://127.0.0.1:")


def test_a_server_that_cannot_be(lighthouse: LighthouseServer) -> None:
    with pytest.raises(RuntimeError, match="bind is 'nonsense'"):
        LighthouseServer("nonsense", 1)
    with pytest.raises(RuntimeError, match="in use"):
        LighthouseServer(lighthouse.address().removeprefix("http://"), 1)
    for wrong in ({"min_replicas": 0}, {"join_timeout_ms": 0}, {"heartbeat_timeout_ms": "5"}):
        arguments: dict[str, Any] = {"bind": "127.0.0.1:0", "min_replicas": 1, **wrong}
        with pytest.raises(RuntimeError, match=f"{next(iter(wrong))} is"):
            LighthouseServer(**arguments)


def test_a_server_that_nobody_holds_any_more_ends() -> None:
    def threads() -> int:
        return len([t for t in threading.enumerate() if t.name == "procguard-lighthouse"])

    before, files = threads(), len(os.listdir("/proc/self/fd"))
    server = LighthouseServer("127.0.0.1:0", 1, quorum_tick_ms=10)
    assert threads() == before + 1
    del server
    assert threads() == before
    assert len(os.listdir("/proc/self/fd")) <= files
