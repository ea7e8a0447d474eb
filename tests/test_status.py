"""``procguard status``: what it prints of a lighthouse, and what it says when there is none."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from procguard.env import Address
from procguard.main import DOORS, main
from procguard.messages import (
    Cause,
    CauseKind,
    Counter,
    Hello,
    Incarnation,
    JobView,
    MemberState,
    MemberView,
    Notice,
    NoticeView,
    Phase,
    Process,
    QuorumId,
    QuorumView,
    QuorumWaiting,
    RankView,
    Reason,
    Settings,
    Snapshot,
)
from procguard.status import as_json, as_text
from tests.lighthouse.running import DEADLINE_S, Lighthouse, Running, free_ports

SETTINGS = Settings(0.1, 1.0, 5.0, 0.3, 60.0)
KILLED = Cause(CauseKind.PROCESS_EXIT, signal=9)
MEMBERS = (
    MemberView("a", MemberState.ALIVE, 95.0, 1234, Incarnation(7, 1), 1,
               (RankView(0, False, 0.053, 1234, Phase.COMPUTE, Process("node1", "boot", 4242, 99)),),
               False, None),
    MemberView("b", MemberState.FAILED, 12.34, 1230, Incarnation(7, 2), 1,
               (RankView(0, False, 12.4, 1230, Phase.COLLECTIVE, Process("node2", "boot", 5, 99)),),
               False, KILLED),
    MemberView("long-name", MemberState.SUSPECT, 0.2, 0, Incarnation(6, 3), 1, (), False, None),
)  # fmt: skip
JOB = JobView(
    "train",
    2,
    1,
    MEMBERS,
    QuorumView(QuorumId(7, 3), 3700.0, ("a", "b")),
    QuorumWaiting(Reason.TOO_FEW_REPLICAS, 1, 2, ("long-name",)),
    (NoticeView(12.34, Notice("b", Incarnation(7, 2), KILLED, 1230)),),
)
SNAPSHOT = Snapshot(7, 200_000.0, SETTINGS, (JOB,), (Counter("invalid frames", 3),))
ADDRESS = Address("localhost", 29510)


def procguard(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environ)


def says_hello(lighthouse: Lighthouse, name: str) -> None:
    process = Process("node1", "boot", 4242, 99)
    token = name.encode().ljust(16, b".")
    lighthouse.answer(Hello("train", name, token, process, 0, 1, "", None, b"", "", 0, 0, 0.0))


# --- what it prints


def test_people_see_members_quorum_and_notices() -> None:
    assert as_text(SNAPSHOT, ADDRESS).splitlines() == [
        "Lighthouse localhost:29510: up for 2 d 7 h, epoch 7, heartbeat every 100 ms, lost after 1.0 s",
        "",
        "Job train: 1 of 3 replicas alive, a quorum needs 2",
        "  Quorum 7.3, 1 h 1 min old: a, b",
        "  Waiting: too few replicas are asking, 1 of 2; missing: long-name",
        "",
        "  REPLICA    STATE           FOR  LAST BEAT  STEP  PHASE       INCARNATION  PROCESS",
        "  a          alive    1 min 35 s      53 ms  1234  compute     7.1          node1:4242",
        "  b          failed       12.3 s     12.4 s  1230  collective  7.2          node2:5",
        "  long-name  suspect      200 ms     200 ms     0              6.3          not back yet",
        "",
        "  Last notices",
        "  12.3 s ago  b  7.2  step 1230  killed by SIGKILL",
        "",
        "Since it started",
        "        3 invalid frames",
    ]


def test_a_group_shows_each_of_its_ranks() -> None:
    process = Process("node1", "boot", 10, 99)
    ranks = (
        RankView(0, False, 0.02, 8, Phase.COLLECTIVE, process),
        RankView(2, True, 0.35, 7, Phase.COMPUTE, process._replace(pid=12)),
    )
    group = MemberView("g", MemberState.SUSPECT, 0.1, 8, Incarnation(7, 1), 3, ranks, False, None)
    text = as_text(SNAPSHOT._replace(jobs=(JOB._replace(members=(group,)),)), ADDRESS)
    assert text.splitlines()[7:10] == [
        "  g         suspect  100 ms     350 ms     8              7.1          2 of 3 ranks",
        "    rank 0                       20 ms     8  collective               node1:10",
        "    rank 2  suspect             350 ms     7  compute                  node1:12",
    ]


def test_an_empty_lighthouse_says_how_to_fill_it() -> None:
    text = as_text(SNAPSHOT._replace(jobs=(), counters=()), ADDRESS)
    assert text.splitlines()[2:] == [
        "No replicas. In each trainer: export PROCGUARD_LIGHTHOUSE=localhost:29510"
    ]


def test_a_job_that_is_not_there_is_named() -> None:
    text = as_text(SNAPSHOT._replace(jobs=(), counters=()), ADDRESS, "other")
    assert text.splitlines()[2:] == [
        "No job 'other' here; `procguard status` without --job shows those there are"
    ]


def test_a_name_cannot_steer_the_terminal() -> None:
    member = MEMBERS[0]._replace(replica_id="\x1b[31mred\n")
    text = as_text(SNAPSHOT._replace(jobs=(JOB._replace(members=(member,)),)), ADDRESS)
    assert r"\x1b[31mred\n " in text
    assert "\x1b" not in text


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_to_wait_is_words(reason: Reason) -> None:
    job = JOB._replace(waiting=QuorumWaiting(reason, 0, 1, ()), quorum=None)
    text = as_text(SNAPSHOT._replace(jobs=(job,)), ADDRESS)
    assert "  No quorum yet\n  Waiting: " in text
    assert reason.name not in text


def test_scripts_see_names_and_plain_values() -> None:
    snapshot = json.loads(json.dumps(as_json(SNAPSHOT)))
    assert snapshot["epoch"] == 7
    assert snapshot["settings"]["heartbeat_interval_s"] == 0.1
    assert snapshot["counters"] == {"invalid frames": 3}
    (job,) = snapshot["jobs"]
    assert job["quorum"] == {"quorum_id": "7.3", "age_s": 3700.0, "replica_ids": ["a", "b"]}
    assert job["waiting"] == {"reason": "too_few_replicas", "have": 1, "need": 2, "missing": ["long-name"]}
    cause = {"kind": "process_exit", "exit_code": None, "signal": 9, "core_dumped": False, "text": ""}
    cause["words"] = "killed by SIGKILL"
    assert job["members"][1] == {
        "replica_id": "b",
        "state": "failed",
        "in_state_s": 12.34,
        "step": 1230,
        "incarnation": "7.2",
        "group_world_size": 1,
        "ranks": [
            {
                "group_rank": 0,
                "suspect": False,
                "beat_age_s": 12.4,
                "step": 1230,
                "phase": "collective",
                "process": {"host": "node2", "boot_id": "boot", "pid": 5, "start_time": 99},
            }
        ],
        "waiting": False,
        "cause": cause,
    }
    assert job["notices"][0]["notice"]["cause"] == cause


# --- whom it asks


def test_it_asks_the_lighthouse_of_the_variable() -> None:
    with Lighthouse("--port=0").listening() as lighthouse:
        says_hello(lighthouse, "a")
        shown = procguard("status", PROCGUARD_LIGHTHOUSE=f"http://127.0.0.1:{lighthouse.port}")
        assert (shown.exit_code, shown.stderr) == (0, "")
        assert f"Lighthouse 127.0.0.1:{lighthouse.port}: " in shown.stdout
        assert "Job train: 1 of 1 replicas alive" in shown.stdout
        assert "node1:4242" in shown.stdout


def test_the_flag_goes_over_the_variable() -> None:
    with Lighthouse("--port=0").listening() as lighthouse:
        says_hello(lighthouse, "a")
        flags = ("status", "--json", f"--lighthouse=localhost:{lighthouse.port}")
        shown = procguard(*flags, PROCGUARD_LIGHTHOUSE="not an address")
        assert json.loads(shown.stdout)["jobs"][0]["members"][0]["replica_id"] == "a"
        assert json.loads(procguard(*flags, "--job=another").stdout)["jobs"] == []


def test_the_other_address_of_a_name_is_tried_too() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        socket.getaddrinfo("localhost", 0, socket.AF_INET6)
    except OSError:
        pytest.skip("localhost is no IPv6 address here")
    with Lighthouse("--port=0", "--bind=::1").listening() as lighthouse:
        shown = procguard("status", f"--lighthouse=localhost:{lighthouse.port}", f"--timeout={DEADLINE_S}")
        assert shown.exit_code == 0


def test_nobody_there() -> None:
    port = free_ports()
    shown = procguard("status", "--timeout=0.05", PROCGUARD_LIGHTHOUSE=f"localhost:{port}")
    assert shown.exit_code == 1
    assert shown.stderr.startswith(
        f"Error: No lighthouse answered at localhost:{port} (from PROCGUARD_LIGHTHOUSE)"
    )
    assert "within 0.05 s" in shown.stderr
    assert "--lighthouse" in shown.stderr


def test_somebody_else_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        shown = procguard("status", "--timeout=0.05", f"--lighthouse=127.0.0.1:{port}")
    assert shown.exit_code == 1
    assert "(from --lighthouse)" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (["--lighthouse=29510"], {}, "--lighthouse: '29510' is not an address"),
        ([], {"PROCGUARD_LIGHTHOUSE": "a b"}, "PROCGUARD_LIGHTHOUSE: 'a b' is not an address"),
        (["--timeout=soon"], {}, "--timeout: 'soon' is not a time span"),
        (["--job=" + "j" * 256], {}, "--job: 'jjj"),
    ],
)
def test_what_cannot_be_asked(arguments: list[str], environ: dict[str, str], said: str) -> None:
    shown = procguard("status", *arguments, **environ)
    assert shown.exit_code == 2
    assert said in shown.stderr
    assert shown.stdout == ""


# --- watching


def test_watching_outlives_the_lighthouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    port = free_ports()
    flags = ("--json", "--watch", "--timeout=0.3", f"--lighthouse=127.0.0.1:{port}")
    with Running("procguard.main", "status", *flags) as watch:
        for _ in range(2):
            with Lighthouse(f"--port={port}").listening() as lighthouse:
                while json.loads(watch.output.get(timeout=DEADLINE_S) or "")["epoch"] != lighthouse.epoch:
                    pass
                lighthouse.kill(signal.SIGKILL)
            assert watch.error_line("No lighthouse answered").endswith("; still asking")
        assert watch.kill(signal.SIGINT) == 0
        assert "Traceback" not in watch.rest_of_errors()


# --- the command around it


def test_help_names_each_subcommand() -> None:
    shown = procguard("--help")
    assert shown.exit_code == 0
    assert all(f"  {name} " in shown.output and door.summary in shown.output for name, door in DOORS.items())


@pytest.mark.parametrize("name", DOORS)
def test_each_subcommand_is_behind_its_door(name: str) -> None:
    shown = procguard(name, "--help")
    assert shown.exit_code == 0
    assert f" {name} [OPTIONS]" in shown.output


def test_an_unknown_subcommand_is_one_message() -> None:
    shown = procguard("statsu")
    assert shown.exit_code == 2
    assert "No such command 'statsu'" in shown.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"]])
def test_status_needs_nothing_of_the_demo(arguments: list[str]) -> None:
    program = (
        "import sys; from procguard.main import main; main(sys.argv[1:], standalone_mode=False);"
        "print(sorted({'numpy', 'sklearn', 'rich'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, *arguments]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"
