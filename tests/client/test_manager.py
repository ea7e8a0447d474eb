"""The Manager as a user makes it: its arguments, what goes wrong at the start, and one on a real lighthouse.

The rules of its steps are in test_replica.
"""

from __future__ import annotations

import inspect
import json
import socket
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest

import procguard.client
from procguard.client import Manager, WorldSizeMode
from procguard.errors import LighthouseUnreachable, UsageError
from tests.client.fakes import DEADLINE_S, FakeCheckpoints, FakeGroup
from tests.lighthouse.running import REPOSITORY, Lighthouse

MINUTE = timedelta(seconds=60)

TORCHFT = {
    "pg": inspect.Parameter.empty,
    "load_state_dict": inspect.Parameter.empty,
    "state_dict": inspect.Parameter.empty,
    "min_replica_size": inspect.Parameter.empty,
    "use_async_quorum": True,
    "timeout": MINUTE,
    "quorum_timeout": MINUTE,
    "connect_timeout": MINUTE,
    "rank": None,
    "world_size": None,
    "world_size_mode": WorldSizeMode.DYNAMIC,
    "store_addr": None,
    "store_port": None,
    "lighthouse_addr": None,
    "replica_id": None,
    "port": None,
    "hostname": None,
    "heartbeat_interval": None,
    "checkpoint_transport": None,
    "init_sync": True,
    "max_retries": None,
    "quorum_retries": 0,
}

TRAINER = """
import json, os, sys, threading
from procguard.adapters.collective import RingProcessGroup
from procguard.client import Manager
from procguard.errors import UsageError

manager = Manager(RingProcessGroup(), lambda state: None, dict, 1, replica_id="a")
manager.start_quorum()
committed = manager.should_commit()
child = os.fork()
if not child:
    try:
        manager.report_progress()
        manager.report_error(ValueError("in the child"))
        manager.shutdown()
        manager.start_quorum()
    except UsageError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
manager.start_quorum()
committed_again = manager.should_commit()
for thread in threading.enumerate():
    if thread.name == "procguard-session":
        thread.join(30)  # until the listener process is ready: only that one can tell of our end
print(json.dumps([committed, committed_again, manager.current_step(), str(manager.errored())]), flush=True)
sys.stdin.readline()
raise ValueError("no such shape")
"""


def manager(**arguments: Any) -> Manager:
    plain: dict[str, Any] = {
        "pg": FakeGroup(),
        "load_state_dict": None,
        "state_dict": None,
        "min_replica_size": 1,
        "lighthouse_addr": "127.0.0.1:1",
        "checkpoint_transport": FakeCheckpoints(),
    }
    return Manager(**(plain | arguments))


def test_its_arguments_are_torchfts_in_order_and_default_and_ours_are_named() -> None:
    parameters = list(inspect.signature(Manager).parameters.values())
    positional = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(positional.items()) == list(TORCHFT.items())
    named = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert named == {"job_id": None, "proactive_recovery": None, "progress_timeout": None}


def test_the_folder_gives_it_out_and_nothing_else() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Manger'"):
        _ = procguard.client.Manger


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"state_dict": dict}, "give both or neither"),
        ({"min_replica_size": 0}, "min_replica_size is 0"),
        ({"lighthouse_addr": None}, "no lighthouse address"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_begun(arguments: dict[str, Any], said: str) -> None:
    group = FakeGroup()
    with pytest.raises(UsageError, match=said):
        manager(pg=group, **arguments)
    assert group.host == ""


def test_without_a_lighthouse_it_says_so_in_time_and_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    transport = FakeCheckpoints()
    with pytest.raises(LighthouseUnreachable) as caught:
        manager(
            lighthouse_addr=f"127.0.0.1:{port}",
            connect_timeout=timedelta(seconds=0.1),
            checkpoint_transport=transport,
        )
    said = str(caught.value)
    assert said.startswith(
        f"no lighthouse answered at 127.0.0.1:{port} (given as lighthouse_addr) within 0.1 s"
    )
    assert f"start one with `procguard-lighthouse --port {port}`" in said
    assert transport.is_shut_down


def test_on_a_real_lighthouse_it_steps_survives_a_fork_and_says_why_it_dies() -> None:
    with Lighthouse("--port=0") as lighthouse:
        lighthouse.listening()
        trainer = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", TRAINER],
            cwd=REPOSITORY,
            env={"PYTHONPATH": ".", "PROCGUARD_LIGHTHOUSE": lighthouse.address},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with trainer:
            assert trainer.stdout is not None
            child, parent = trainer.stdout.readline(), trainer.stdout.readline()
            assert f"this Manager belongs to process {trainer.pid}; a forked child" in child
            assert json.loads(parent) == [True, True, 2, "None"]
            _, errors = trainer.communicate("go\n", timeout=DEADLINE_S)
        assert "ValueError: no such shape" in errors
        line = lighthouse.error_line("sending failure notification")
        assert "exited with code 1 (ValueError: no such shape)" in line
