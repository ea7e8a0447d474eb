"""``procguard-lighthouse`` as a process: how it starts, what it survives, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from procguard.config import LighthouseConfig
from procguard.lighthouse.cli import main
from procguard.messages import Snapshot, SnapshotRequest
from tests.lighthouse.running import DEADLINE_S, Lighthouse, Running, free_ports

CLI = "procguard.lighthouse.cli"


@pytest.fixture(autouse=True)
def own_state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Default state directories are made here."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def answers(lighthouse: Lighthouse) -> Snapshot:
    snapshot = lighthouse.answer(SnapshotRequest(""))
    assert isinstance(snapshot, Snapshot)
    return snapshot


# --- start and end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_listens_and_ends_cleanly(number: signal.Signals) -> None:
    with Running(CLI, "--port=0") as lighthouse:
        line = lighthouse.error_line("Lighthouse listening on 127.0.0.1:")
        port = line.partition("127.0.0.1:")[2].partition(",")[0]
        assert " INFO " in line
        assert "notices on port" in line
        assert "epoch" in line
        assert f"export PROCGUARD_LIGHTHOUSE=127.0.0.1:{port}" in lighthouse.error_line("In each trainer")
        assert lighthouse.kill(number) == 0
        assert lighthouse.rest_of_errors().endswith(f"Lighthouse stopped by {number.name}")
        assert lighthouse.output.get(timeout=DEADLINE_S) is None


def test_its_settings_reach_those_who_ask(tmp_path: Path) -> None:
    config = tmp_path / "lighthouse.yaml"
    config.write_text("heartbeat_interval_ms: 50\nheartbeat_timeout_ms: 500\n", encoding="utf-8")
    environ = {"PROCGUARD_LIGHTHOUSE_JOIN_TIMEOUT_MS": "7000"}
    flags = ("--port=0", f"--config={config}", "--heartbeat-timeout-ms=400")
    with Lighthouse(*flags, environ=environ).listening() as lighthouse:
        settings = answers(lighthouse).settings
        assert settings == (0.05, 0.4, 5.0, 0.3, 7.0)


def test_every_key_is_a_flag_that_says_its_default() -> None:
    said = " ".join(CliRunner().invoke(main, ["--help"]).output.split())
    for key, field in LighthouseConfig.model_fields.items():
        assert f"--{key.replace('_', '-')} " in said
        assert not field.default or f"[default: {field.default}]" in said


def test_the_log_is_one_json_object_a_line() -> None:
    with Lighthouse("--port=0").listening() as lighthouse:
        assert lighthouse.kill(signal.SIGTERM) == 0
        lines = [json.loads(line) for line in lighthouse.rest_of_errors().splitlines()]
    assert lines[-1]["event"] == "Lighthouse stopped by SIGTERM"
    assert all(line.keys() == {"ts", "level", "event"} for line in lines)
    assert lines[-1]["ts"].endswith("Z")


def test_an_open_bind_is_said_out_loud() -> None:
    with Lighthouse("--port=0", "--bind=0.0.0.0", "--insecure").listening() as lighthouse:
        assert lighthouse.address == f"{socket.gethostname()}:{lighthouse.port}"
        lighthouse.error_line("Insecure")
        answers(lighthouse)


# --- command lines written for torchft's lighthouse


def test_the_flags_of_torchft_in_its_own_spelling() -> None:
    flags = [
        "--min_replicas=2",
        "--join_timeout_ms",
        "7000",
        "--heartbeat_timeout_ms=400",
        "--quorum_tick_ms=100",
    ]
    with Lighthouse("--port=0", *flags, "--failure_tick_ms", "50").listening() as lighthouse:
        (remark,) = [line for line in lighthouse.seen if "ticks" in line]
        assert "--quorum_tick_ms and --failure_tick_ms ignored" in json.loads(remark)["event"]
        assert answers(lighthouse).settings == (0.1, 0.4, 5.0, 0.3, 7.0)
        assert lighthouse.kill(signal.SIGTERM) == 0


def test_without_its_ticks_nothing_is_said_of_them() -> None:
    with Lighthouse("--port=0").listening() as lighthouse:
        assert not [line for line in lighthouse.seen if "tick" in line]


def test_a_tick_that_is_no_number_is_refused() -> None:
    assert "is not a valid integer" in refusal("--port=0", "--quorum_tick_ms=often")


def test_the_help_shows_one_spelling_and_no_ticks() -> None:
    shown = CliRunner().invoke(main, ["--help"]).output
    flags = [word for word in shown.split() if word.startswith("--")]
    assert not [flag for flag in flags if "_" in flag or "tick" in flag]


def test_the_port_may_stand_in_the_bind() -> None:
    port = free_ports()
    with Running(CLI, f"--bind=127.0.0.1:{port}") as lighthouse:
        lighthouse.error_line(f"Lighthouse listening on 127.0.0.1:{port}, notices on port {port + 1}")


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine speaks no IPv6")
def test_torchft_s_own_bind_is_open_and_so_must_be_said_out_loud() -> None:
    port = free_ports()
    said = refusal("--min_replicas=1", f"--bind=[::]:{port}")
    assert "bind = '::' (--bind) and insecure = False (default): other machines could reach" in said
    with Running(CLI, f"--bind=[::]:{port}", "--insecure") as lighthouse:
        lighthouse.error_line(f"Lighthouse listening on [::]:{port}")


# --- what it survives


def test_strangers_do_not_stop_it() -> None:
    with Lighthouse("--port=0").listening() as lighthouse:
        for greeting in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 4096, os.urandom(4096)):
            with socket.create_connection(("127.0.0.1", lighthouse.port), DEADLINE_S) as stranger:
                stranger.sendall(greeting)
        lighthouse.error_line("HTTP")
        assert answers(lighthouse).jobs == ()
        assert lighthouse.kill(signal.SIGTERM) == 0


# --- what it refuses


def refusal(*flags: str) -> str:
    with Running(CLI, *flags) as lighthouse:
        assert lighthouse.exit_code() == 2
        said = lighthouse.rest_of_errors()
    assert "Traceback" not in said
    return said


def test_a_port_in_use_is_named() -> None:
    with Lighthouse("--port=0").listening() as first:
        said = refusal(f"--port={first.port}")
    assert str(first.port) in said
    assert "--port" in said


def test_a_bad_configuration_is_one_message() -> None:
    said = refusal("--port=0", "--heartbeat-interval-ms=500")
    assert said.count("\n") == 0
    assert "heartbeat_interval_ms = 500 (--heartbeat-interval-ms)" in said
    assert "No such option" in refusal("--prot=0")


def test_a_state_dir_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refusal("--port=0", f"--state-dir={tmp_path / 'file' / 'state'}")
    assert said.startswith(f"Error: {tmp_path / 'file' / 'state'}: ")
    assert "--state-dir" in said


def test_a_state_of_the_future(tmp_path: Path) -> None:
    (tmp_path / "epoch.json").write_text('{"version": 9, "epoch": 1}', encoding="utf-8")
    assert "newer ProcGuard" in refusal("--port=0", f"--state-dir={tmp_path}")


def test_two_on_one_state_dir(tmp_path: Path) -> None:
    with Lighthouse("--port=0", f"--state-dir={tmp_path}").listening():
        said = refusal("--port=0", f"--state-dir={tmp_path}")
    assert f"{tmp_path}: in use by another lighthouse (pid " in said


# --- its memory


def test_killed_and_started_again_it_has_a_greater_epoch(tmp_path: Path) -> None:
    flags = ("--port=0", f"--state-dir={tmp_path}")
    with Lighthouse(*flags).listening() as first:
        assert first.kill(signal.SIGKILL) == -signal.SIGKILL
    with Lighthouse(*flags).listening() as second:
        assert second.epoch > first.epoch
        assert answers(second).epoch == second.epoch


def test_a_broken_state_is_set_aside_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "epoch.json").write_text("{", encoding="utf-8")
    with Lighthouse("--port=0", f"--state-dir={tmp_path}").listening() as lighthouse:
        (warning,) = [line for line in lighthouse.seen if "set aside" in line]
    (kept,) = tmp_path.glob("epoch.json.broken-*")
    assert json.loads(warning)["level"] == "warning"
    assert str(tmp_path / "epoch.json") in warning
    assert str(kept) in warning


def test_without_its_default_state_dir_it_goes_on(own_state_home: Path) -> None:
    own_state_home.touch()
    with Lighthouse(f"--port={free_ports()}").listening() as lighthouse:
        (warning,) = [line for line in lighthouse.seen if "Going on without" in line]
        assert str(own_state_home) in warning
        answers(lighthouse)


def test_its_default_state_dir_is_the_ports(own_state_home: Path) -> None:
    with Lighthouse(f"--port={free_ports()}").listening() as lighthouse:
        path = own_state_home / "procguard" / f"lighthouse-{lighthouse.port}" / "epoch.json"
        assert json.loads(path.read_text(encoding="utf-8"))["epoch"] == lighthouse.epoch
