"""Arguments and variables together: which of them wins, and what cannot work."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from procguard.client.options import DEFAULT_JOB, ManagerOptions
from procguard.env import Address
from procguard.errors import UsageError
from tests.keys import Keys

MINUTE = timedelta(seconds=60)


def resolve(environ: dict[str, str] | None = None, **arguments: Any) -> ManagerOptions:
    plain: dict[str, Any] = {
        "lighthouse_addr": "lighthouse:1",
        "job_id": None,
        "replica_id": None,
        "min_replica_size": 2,
        "group_rank": None,
        "group_world_size": None,
        "timeout": MINUTE,
        "quorum_timeout": MINUTE,
        "connect_timeout": MINUTE,
        "quorum_retries": 0,
        "max_retries": None,
        "progress_timeout": None,
        "proactive_recovery": None,
        "hostname": None,
    }
    return ManagerOptions.resolve(**(plain | arguments), environ=environ or {})


def test_defaults() -> None:
    options = resolve()
    assert options.lighthouse == Address("lighthouse", 1)
    assert options.where == "lighthouse:1 (given as lighthouse_addr)"
    assert options.job_id == DEFAULT_JOB
    assert options.replica_id == f"{socket.gethostname()}-{os.getpid()}"
    assert options.proactive
    assert options.progress_timeout is None
    assert options.max_retries is None


@pytest.mark.parametrize(
    ("variable", "text", "argument", "field", "value"),
    [
        ("PROCGUARD_TIMEOUT_SEC", "7", "timeout", "timeout", timedelta(seconds=7)),
        ("PROCGUARD_QUORUM_TIMEOUT_SEC", "7", "quorum_timeout", "quorum_timeout", timedelta(seconds=7)),
        ("TORCHFT_CONNECT_TIMEOUT_SEC", "7", "connect_timeout", "connect_timeout", timedelta(seconds=7)),
        ("PROCGUARD_PROGRESS_TIMEOUT_SEC", "7", "progress_timeout", "progress_timeout", timedelta(seconds=7)),
    ],
)
def test_of_timeouts_the_variable_wins(
    variable: str, text: str, argument: str, field: str, value: timedelta
) -> None:
    assert getattr(resolve({variable: text}, **{argument: MINUTE}), field) == value
    assert getattr(resolve(**{argument: MINUTE}), field) == MINUTE


def test_of_retries_the_variable_wins_also_with_0() -> None:
    assert resolve({"PROCGUARD_QUORUM_RETRIES": "0"}, quorum_retries=3).quorum_retries == 0
    assert resolve(quorum_retries=3).quorum_retries == 3


@pytest.mark.parametrize(
    ("variable", "text", "argument", "given", "field", "expected"),
    [
        ("PROCGUARD_LIGHTHOUSE", "other:2", "lighthouse_addr", "mine:3", "lighthouse", Address("mine", 3)),
        ("PROCGUARD_JOB_ID", "theirs", "job_id", "mine", "job_id", "mine"),
        ("REPLICA_ID", "theirs", "replica_id", "mine", "replica_id", "mine"),
        ("PROCGUARD_PROACTIVE_RECOVERY", "1", "proactive_recovery", False, "proactive", False),
    ],
)
def test_of_names_and_the_address_the_argument_wins(
    variable: str, text: str, argument: str, given: Any, field: str, expected: Any
) -> None:
    assert getattr(resolve({variable: text}, **{argument: given}), field) == expected


def test_without_an_argument_the_variable_counts() -> None:
    options = resolve(
        {
            "PROCGUARD_LIGHTHOUSE": "tcp://other:2",
            "PROCGUARD_JOB_ID": "job",
            "REPLICA_GROUP_ID": "3",
            "PROCGUARD_PROACTIVE_RECOVERY": "off",
        },
        lighthouse_addr=None,
    )
    assert options.lighthouse == Address("other", 2)
    assert "PROCGUARD_LIGHTHOUSE" in options.where
    assert options.job_id == "job"
    assert options.replica_id == "3"
    assert not options.proactive


def test_the_variable_in_which_it_stood_is_named() -> None:
    options = resolve({"TORCHFT_LIGHTHOUSE": "other:2"}, lighthouse_addr=None)
    assert options.where == "other:2 (from TORCHFT_LIGHTHOUSE)"


@pytest.mark.parametrize("hostname", ["node-1.cluster", "10.0.0.1", "::1", "[::1]"])
def test_a_hostname_is_a_name_or_an_address(hostname: str) -> None:
    assert resolve(hostname=hostname).hostname == hostname


def test_a_replica_id_goes_before_a_group_id() -> None:
    assert resolve({"REPLICA_ID": "r", "REPLICA_GROUP_ID": "3"}).replica_id == "r"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"lighthouse_addr": None}, "start one with `procguard-lighthouse --port 29510`"),
        ({"lighthouse_addr": "lighthouse:http"}, "lighthouse_addr: 'lighthouse:http' is not an address"),
        ({"job_id": ""}, "job_id: '' cannot be a name"),
        ({"replica_id": "a\0b"}, "replica_id: "),
        ({"min_replica_size": 0}, "min_replica_size is 0"),
        ({"timeout": timedelta(0)}, "timeout is datetime.timedelta(0); give a timedelta above 0"),
        ({"timeout": 60}, "timeout is 60; give a timedelta above 0, such as timedelta(seconds=60)"),
        ({"quorum_timeout": timedelta(seconds=-1)}, "quorum_timeout is"),
        ({"connect_timeout": timedelta(0)}, "connect_timeout is"),
        ({"progress_timeout": timedelta(0)}, "progress_timeout is"),
        ({"min_replica_size": 2.0}, "min_replica_size is 2.0; give a whole number, 1 or more"),
        ({"min_replica_size": "2"}, "min_replica_size is '2'; give a whole number"),
        ({"proactive_recovery": "off"}, "proactive_recovery is 'off'; give True, False or None"),
        ({"replica_id": 3}, "replica_id is 3; give text, such as '3'"),
        ({"lighthouse_addr": 29510}, "lighthouse_addr is 29510; give text"),
        ({"hostname": 5}, "hostname is 5; give text"),
        ({"hostname": "no such host"}, "hostname is 'no such host'; give a name or an address"),
        ({"group_rank": "0"}, "rank is '0'; give a whole number, 0 or more"),
        ({"quorum_retries": -1}, "quorum_retries is -1; give a whole number, 0 or more"),
        ({"max_retries": -2}, "max_retries is -2"),
        ({"max_retries": 1.5}, "max_retries is 1.5"),
        ({"group_rank": 2, "group_world_size": 2}, "rank 2 of world_size 2"),
        ({"group_world_size": 2, "replica_id": "a"}, "needs a name for its run"),
    ],
)
def test_what_cannot_work_is_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(**arguments)
    assert said in str(caught.value)


TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29600",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "2",
}


def test_torchruns_variables_say_which_rank_of_which_run() -> None:
    found = resolve(TORCHRUN, replica_id="a")
    assert (found.group_rank, found.group_world_size) == (1, 4)
    assert found.group_run == "none#2 node1:29600"
    again = resolve(TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "3"}, replica_id="a")
    assert again.group_run != found.group_run


def test_arguments_come_before_torchruns_variables() -> None:
    alone = resolve(TORCHRUN, group_rank=0, group_world_size=1)
    assert (alone.group_rank, alone.group_world_size, alone.group_run) == (0, 1, "")


def test_by_hand_the_master_address_names_the_run() -> None:
    by_hand = {name: value for name, value in TORCHRUN.items() if "ELASTIC" not in name}
    assert resolve(by_hand, replica_id="a").group_run == "node1:29600"


def test_a_group_of_several_ranks_needs_a_name() -> None:
    with pytest.raises(
        UsageError, match="one of 4 ranks of a replica group without a name; set REPLICA_GROUP"
    ):
        resolve(TORCHRUN, replica_id=None)


def test_a_variable_that_cannot_be_read_is_named() -> None:
    with pytest.raises(UsageError, match="PROCGUARD_PROACTIVE_RECOVERY: 'maybe' is neither on nor off"):
        resolve({"PROCGUARD_PROACTIVE_RECOVERY": "maybe"})


def test_the_key_is_the_replicas_own(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys")
    assert resolve().keys is None
    for path, name in ((keys.path("b"), "a"), (keys.directory, "b")):
        options = resolve({"PROCGUARD_KEYS": str(path), "REPLICA_ID": name})
        assert options.keys is not None
        assert options.keys.name == "b"
        assert not [secret for secret in keys.secrets() if secret in repr(options)]
    with pytest.raises(UsageError, match=r"PROCGUARD_KEYS: .*no key for replica_id 'zz'; it has a, b"):
        resolve({"PROCGUARD_KEYS": str(keys.directory)}, replica_id="zz")
    with pytest.raises(UsageError, match=r"PROCGUARD_KEYS: .*cannot be read"):
        resolve({"PROCGUARD_KEYS": str(tmp_path / "nothing")})
