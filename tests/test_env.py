"""The variables: their forms, their twins, and what is said of those that cannot be read."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procguard.env import (
    Address,
    Found,
    TrainerSettings,
    WorkerSettings,
    find_lighthouse_variables,
    parse_address,
    parse_flag,
    parse_name,
)
from procguard.errors import ConfigError, UsageError


def problem_of(**environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        TrainerSettings.read(environ)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("lighthouse:29510", "lighthouse", 29510),
        ("tcp://lighthouse:4000", "lighthouse", 4000),
        ("http://lighthouse.example.org:29510", "lighthouse.example.org", 29510),
        ("HTTP://lighthouse:29510/", "lighthouse", 29510),
        ("[::1]:29510", "::1", 29510),
        ("tcp://[fe80::1%eth0]:4000", "fe80::1%eth0", 4000),
        ("[::1]", "::1", 29510),
        ("lighthouse", "lighthouse", 29510),
        ("10.0.0.7", "10.0.0.7", 29510),
        ("compose_service-1:1", "compose_service-1", 1),
        ("host.:65535", "host.", 65535),
    ],
)
def test_an_address_in_each_of_its_forms(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host:",
        "host:0",
        "host:65536",
        "host:295100",
        "host:²",
        "host:port",
        "host:29510/path",
        "https://host:29510",
        "user@host:29510",
        "ho st:29510",
        "host:29510\n",
        "-host:1",
        "a..b:1",
        "a" * 64,
        "29510",
        ":29510",
        "10.0.0:29510",
        "::1",
        "::1:29510",
        "[]:29510",
        "[host]:29510",
        "[::g]:29510",
        "tcp://",
        "höst:29510",
    ],
)
def test_what_is_no_address_is_told_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)
    for form in ("host:29510", "tcp://host:29510", "http://host:29510", "[v6-address]:29510"):
        assert form in str(caught.value)


def test_a_host_longer_than_dns_knows() -> None:
    with pytest.raises(UsageError, match="is not an address"):
        parse_address(".".join(["a" * 60] * 5))


@given(st.text())
def test_an_address_that_is_read_can_be_written_and_read_again(text: str) -> None:
    try:
        address = parse_address(text)
    except UsageError:
        return
    assert parse_address(str(address)) == address


@given(st.from_regex(r"[a-z0-9]{1,8}(\.[a-z]{1,8})?", fullmatch=True).filter(lambda host: not host.isdigit()))
def test_every_plain_host_is_an_address(host: str) -> None:
    assert str(parse_address(f"{host}:4000")) == f"{host}:4000"


@pytest.mark.parametrize("text", ["1", "true", "YES", "On"])
def test_on(text: str) -> None:
    assert parse_flag(text) is True


@pytest.mark.parametrize("text", ["0", "False", "no", "OFF"])
def test_off(text: str) -> None:
    assert parse_flag(text) is False


def test_maybe_is_neither_on_nor_off() -> None:
    assert problem_of(PROCGUARD_PROACTIVE_RECOVERY="maybe") == (
        "PROCGUARD_PROACTIVE_RECOVERY: 'maybe' is neither on nor off; "
        "write 1, true, yes or on, or else 0, false, no or off"
    )


def test_every_variable_is_read_into_its_setting() -> None:
    environ = {
        "PROCGUARD_LIGHTHOUSE": "tcp://lighthouse:4000",
        "PROCGUARD_JOB_ID": "träin",
        "PROCGUARD_PROACTIVE_RECOVERY": "off",
        "PROCGUARD_TIMEOUT_SEC": "60",
        "PROCGUARD_QUORUM_TIMEOUT_SEC": "0.5",
        "PROCGUARD_CONNECT_TIMEOUT_SEC": "1e1",
        "PROCGUARD_PROGRESS_TIMEOUT_SEC": "0.001",
        "PROCGUARD_QUORUM_RETRIES": "0",
        "PROCGUARD_MANAGER_PORT": "65535",
        "PROCGUARD_KEYS": "/keys/a.key",
        "REPLICA_ID": "replica-3",
        "REPLICA_GROUP_ID": "3",
        "NUM_REPLICA_GROUPS": "4",
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "node-0",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "2",
    }
    assert TrainerSettings.read(environ) == TrainerSettings(
        lighthouse=Address("lighthouse", 4000),
        job_id="träin",
        proactive_recovery=False,
        timeout=timedelta(seconds=60),
        quorum_timeout=timedelta(milliseconds=500),
        connect_timeout=timedelta(seconds=10),
        progress_timeout=timedelta(milliseconds=1),
        quorum_retries=0,
        manager_port=65535,
        keys=Path("/keys/a.key"),
        replica_id="replica-3",
        replica_group_id=3,
        num_replica_groups=4,
        group_rank=1,
        group_world_size=2,
        master_addr="node-0",
        master_port=29500,
        run_id="none",
        restart_count=2,
    )
    assert {entry.metadata["variable"].name for entry in fields(TrainerSettings)} == set(environ)


def test_a_guards_worker_is_told_where_it_is_and_who() -> None:
    environ = {"PROCGUARD_GUARD": "127.0.0.1:29520", "PROCGUARD_WORKER_ID": "trainer-0"}
    assert WorkerSettings.read(environ) == WorkerSettings(Address("127.0.0.1", 29520), "trainer-0")
    assert WorkerSettings.read({}) == WorkerSettings(None, None)
    with pytest.raises(ConfigError) as caught:
        WorkerSettings.read({"PROCGUARD_GUARD": "h:x", "PROCGUARD_WORKER_ID": "a\0b"})
    assert len(str(caught.value).splitlines()) == 2


def test_what_is_unset_or_empty_is_left_to_the_caller() -> None:
    assert TrainerSettings.read({}) == TrainerSettings()
    assert TrainerSettings.read({"PROCGUARD_LIGHTHOUSE": "", "RANK": " \n"}) == TrainerSettings()


def test_without_an_environment_the_process_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCGUARD_JOB_ID", "train")
    assert TrainerSettings.read().job_id == "train"


def test_blanks_around_a_value_are_dropped() -> None:
    assert TrainerSettings.read({"PROCGUARD_LIGHTHOUSE": " host:29510\n"}).lighthouse == Address(
        "host", 29510
    )


@pytest.mark.parametrize("ours", [{}, {"PROCGUARD_LIGHTHOUSE": ""}, {"PROCGUARD_LIGHTHOUSE": "  "}])
def test_the_twin_is_read_when_ours_is_unset(ours: dict[str, str]) -> None:
    settings = TrainerSettings.read({**ours, "TORCHFT_LIGHTHOUSE": "http://old:29510"})
    assert settings.lighthouse == Address("old", 29510)


@pytest.mark.parametrize(
    ("twin", "text", "setting", "value"),
    [
        ("TORCHFT_LIGHTHOUSE", "http://lighthouse:29510", "lighthouse", Address("lighthouse", 29510)),
        ("TORCHFT_JOB_ID", "train", "job_id", "train"),
        ("TORCHFT_PROACTIVE_RECOVERY", "0", "proactive_recovery", False),
        ("TORCHFT_TIMEOUT_SEC", "1", "timeout", timedelta(seconds=1)),
        ("TORCHFT_QUORUM_TIMEOUT_SEC", "2", "quorum_timeout", timedelta(seconds=2)),
        ("TORCHFT_CONNECT_TIMEOUT_SEC", "3", "connect_timeout", timedelta(seconds=3)),
        ("TORCHFT_PROGRESS_TIMEOUT_SEC", "4", "progress_timeout", timedelta(seconds=4)),
        ("TORCHFT_QUORUM_RETRIES", "5", "quorum_retries", 5),
        ("TORCHFT_MANAGER_PORT", "6", "manager_port", 6),
        ("TORCHFT_KEYS", "keys", "keys", Path("keys")),
    ],
)
def test_every_twin_is_read(twin: str, text: str, setting: str, value: object) -> None:
    settings = TrainerSettings.read({twin: text})
    assert getattr(settings, setting) == value
    assert settings == replace(TrainerSettings(), **{setting: value})  # type: ignore[arg-type]


def test_no_variable_of_ours_is_without_its_twin() -> None:
    ours = [entry.metadata["variable"].name for entry in fields(TrainerSettings)]
    twins = {name.replace("PROCGUARD_", "TORCHFT_"): "?" for name in ours if name.startswith("PROCGUARD_")}
    assert {line.split(":")[0] for line in problem_of(**twins).splitlines()} == set(twins) - {
        "TORCHFT_JOB_ID",  # any text is one
        "TORCHFT_KEYS",  # the same
    }


def test_ours_goes_before_its_twin() -> None:
    environ = {"PROCGUARD_QUORUM_RETRIES": "2", "TORCHFT_QUORUM_RETRIES": "not even read"}
    assert TrainerSettings.read(environ).quorum_retries == 2


def test_an_error_names_the_variable_in_which_the_value_stood() -> None:
    assert problem_of(TORCHFT_TIMEOUT_SEC="soon").startswith("TORCHFT_TIMEOUT_SEC: 'soon' ")


def test_all_that_is_wrong_is_said_at_once() -> None:
    problem = problem_of(PROCGUARD_LIGHTHOUSE="host:0", RANK="-1", PROCGUARD_TIMEOUT_SEC="60")
    assert [line.split(":")[0] for line in problem.splitlines()] == ["PROCGUARD_LIGHTHOUSE", "RANK"]


@pytest.mark.parametrize("text", ["0", "-1", "0.0001", "nan", "inf", "-inf", "1e10", "1e999", "60s", "1 2"])
def test_what_is_no_time_span(text: str) -> None:
    assert f"PROCGUARD_TIMEOUT_SEC: {text!r} is not a time span" in problem_of(PROCGUARD_TIMEOUT_SEC=text)


@pytest.mark.parametrize(
    ("name", "text", "accepted"),
    [
        ("PROCGUARD_QUORUM_RETRIES", "-1", "of 0 or more"),
        ("PROCGUARD_QUORUM_RETRIES", "1.5", "of 0 or more"),
        ("PROCGUARD_QUORUM_RETRIES", "1_000e", "of 0 or more"),
        ("PROCGUARD_MANAGER_PORT", "65536", "from 0 to 65535"),
        ("NUM_REPLICA_GROUPS", "0", "of 1 or more"),
        ("WORLD_SIZE", "many", "of 1 or more"),
    ],
)
def test_what_is_no_number(name: str, text: str, accepted: str) -> None:
    assert problem_of(**{name: text}) == f"{name}: {text!r} is not a whole number {accepted}"


def test_a_long_value_is_shown_in_part() -> None:
    problem = problem_of(PROCGUARD_QUORUM_RETRIES="9" * 5000)  # more digits than Python converts
    assert problem == f"PROCGUARD_QUORUM_RETRIES: '{'9' * 80}...' is not a whole number of 0 or more"


@pytest.mark.parametrize("text", ["", "a\0b", "é" * 128, "\udcff"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(UsageError, match="write"):
        parse_name(text)


def test_the_longest_name() -> None:
    assert len(parse_name("é" * 127 + "e").encode()) == 255


def test_the_variables_of_a_lighthouse_go_by_its_keys() -> None:
    environ = {
        "PROCGUARD_LIGHTHOUSE": "host:29510",
        "PROCGUARD_LIGHTHOUSE_MIN_REPLICAS": "2",
        "TORCHFT_LIGHTHOUSE_BIND": "::1",
        "PROCGUARD_LIGHTHOUSE_PORT": "",
    }
    assert find_lighthouse_variables(["bind", "port", "min_replicas"], environ) == {
        "bind": Found("TORCHFT_LIGHTHOUSE_BIND", "::1"),
        "min_replicas": Found("PROCGUARD_LIGHTHOUSE_MIN_REPLICAS", "2"),
    }


def test_the_variables_that_kubernetes_sets_for_a_service_are_not_ours() -> None:
    environ = {
        "PROCGUARD_LIGHTHOUSE_PORT": "tcp://10.0.0.11:29510",
        "PROCGUARD_LIGHTHOUSE_PORT_29510_TCP_ADDR": "10.0.0.11",
        "PROCGUARD_LIGHTHOUSE_SERVICE_HOST": "10.0.0.11",
    }
    assert find_lighthouse_variables(["port", "bind"], environ) == {}


def test_a_path_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert TrainerSettings.read({"PROCGUARD_KEYS": "~/keys/a.key"}).keys == Path("/home/ann/keys/a.key")
