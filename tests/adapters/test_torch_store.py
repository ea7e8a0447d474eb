"""Where the ranks of a quorum meet."""

from __future__ import annotations

import time

import pytest

from procguard.errors import CollectiveAborted, CollectiveTimeout, UsageError

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'procguard[torch]'")

from torch.distributed import HashStore, TCPStore

from procguard.adapters.process_group import Place
from procguard.adapters.torch_store import Endpoint, await_all, gather, read_handle

HANDLES = tuple(f"10.0.0.{rank}:2{rank}/0123456789abcdef" for rank in range(3))


def test_a_handle_is_read_back() -> None:
    assert read_handle("some.host:29500/0123456789abcdef") == ("some.host", 29500, "0123456789abcdef")
    assert read_handle("[fe80::1%eth0]:1/0123456789abcdef").host == "fe80::1%eth0"


@pytest.mark.parametrize(
    "handle", ["", "host:1", "host:0/0123456789abcdef", "a:b:1/0123456789abcdef", "h:1/../.."]
)
def test_what_is_no_handle(handle: str) -> None:
    with pytest.raises(UsageError, match="do all replicas use a process group of torch"):
        read_handle(handle)


def test_who_did_not_come_is_named() -> None:
    store, place = HashStore(), Place(1, 1, HANDLES)
    store.set("here/1", "")
    store.add("here", 1)
    with pytest.raises(CollectiveTimeout) as raised:
        await_all(store, place, time.monotonic(), lambda: False)
    assert "waiting for replica rank 0 (10.0.0.0:20), replica rank 2 (10.0.0.2:22)" in str(raised.value)


def test_nobody_waits_for_a_quorum_that_is_over() -> None:
    with pytest.raises(CollectiveAborted):
        await_all(HashStore(), Place(1, 0, HANDLES), time.monotonic() + 60, lambda: True)


def test_a_store_forgets_the_quorum_before() -> None:
    endpoint = Endpoint(environ={})
    handle = endpoint.handle("127.0.0.1")
    assert endpoint.handle("localhost").partition(":")[2] == handle.partition(":")[2]
    store = endpoint._store
    assert store is not None
    for quorum_id in range(1, 5):
        endpoint.lead(quorum_id)
        gather(Place(quorum_id, 0, (handle,)), 60, lambda: False)
        assert store.num_keys() <= 3
    endpoint.close()


def test_the_store_of_torchruns_agent_is_used_where_there_is_one() -> None:
    agent = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port)}
    endpoint = Endpoint({**given, "TORCHELASTIC_USE_AGENT_STORE": "True"})
    handle = endpoint.handle("10.1.2.3")
    assert handle.startswith(f"10.1.2.3:{agent.port}/")  # the others do not know this machine as 127.0.0.1
    assert not Endpoint(given).handle("10.1.2.3").startswith(f"10.1.2.3:{agent.port}/")
    agent.set("theirs", "kept")
    for quorum_id in (1, 2):
        endpoint.lead(quorum_id)
        agent.set(f"{read_handle(handle).token}/{quorum_id}/key", "")
    if hasattr(agent, "list_keys"):
        assert not any("/1/key" in key for key in agent.list_keys())
    assert agent.get("theirs") == b"kept"
