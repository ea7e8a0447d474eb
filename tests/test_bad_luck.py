"""Bad input and bad luck, on real processes: whatever happens to one, the others go on, and only the dead
are blamed.

Most tests strike one and the same job, three trainers on one lighthouse, and leave it as they found it:
whole, all weights equal, no process too many. Each begins by making the job whole, so that one failure does
not spoil the rest.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgpack
import psutil
import pytest
import zmq

from procguard.codec import encode
from procguard.messages import (
    Ack,
    Cause,
    CauseKind,
    Claim,
    Heartbeat,
    Hello,
    MemberState,
    Obituary,
    Phase,
    Process,
    Rejected,
    Rejoin,
    Welcome,
)
from tests.job import Job, Trainer
from tests.lighthouse.running import free_ports

REPLICAS = ("0", "1", "2")


class Stage:
    """The job that the tests share, or a new one after a failure that it did not get over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._jobs = 0
        self.job: Job | None = None

    def whole_job(self) -> Job:
        if self.job is not None:
            try:
                self.job.dismiss_all_but(*REPLICAS)
                self.job.fill(*REPLICAS)
                return self.job
            except AssertionError:
                self.close()
        self._jobs += 1
        folder = self._folder / f"job-{self._jobs}"
        folder.mkdir()
        self.job = self._stack.enter_context(Job(folder))
        self.job.fill(*REPLICAS)
        return self.job

    def close(self) -> None:
        self.job = None
        self._stack.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("bad-luck"))
    yield stage
    stage.close()


@pytest.fixture
def job(stage: Stage) -> Iterator[Job]:
    job = stage.whole_job()
    yield job
    job.dismiss_all_but(*REPLICAS)
    job.fill(*REPLICAS)
    job.check()


@pytest.fixture
def trio(job: Job) -> list[Trainer]:
    return job.fill(*REPLICAS)


# --- a trainer ends -----------------------------------------------------------------------------------


def test_a_trainer_killed_in_mid_step_and_its_replacement(job: Job, trio: list[Trainer]) -> None:
    *survivors, victim = trio
    victim.hang()
    victim.strike(signal.SIGKILL)
    assert job.told(victim, survivors) == {"killed by SIGKILL"}
    job.trains(*survivors)
    replacement = job.start(victim.replica_id)
    job.trains(*survivors, replacement)
    assert replacement.incarnation not in victim.struck
    assert replacement.said("healed")
    assert all(trainer.lives for trainer in survivors)


ENDINGS = {
    "sys.exit(3)": "exited with code 3",
    "raise ValueError('the disk is on fire')": "exited with code 1 (ValueError: the disk is on fire)",
    "raise KeyError": "exited with code 1 (KeyError)",
    "os._exit(0)": "left",
    "sys.exit()": "left",
    "os.kill(os.getpid(), signal.SIGTERM)": "killed by SIGTERM",
    "os.kill(os.getpid(), signal.SIGSEGV)": "killed by SIGSEGV",
    "os.execv('/bin/sleep', ['sleep', '1000'])": "process replaced itself (exec)",
}


def test_each_way_to_end(job: Job, trio: list[Trainer]) -> None:
    doomed = [f"doomed-{number}" for number in range(len(ENDINGS))]
    victims = job.fill(*REPLICAS, *doomed)[len(trio) :]
    for victim, (words, cause) in zip(victims, ENDINGS.items(), strict=True):
        victim.end(words)
        assert job.told(victim, trio) == {cause}, words
    job.trains(*trio)
    victims[-1].close()  # lives on, as another program


def test_ctrl_c_in_the_trainers_terminal(job: Job, trio: list[Trainer]) -> None:
    *survivors, victim = trio
    (listener,) = victim.last["listeners"]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(listener, number)
    victim.struck.append(victim.incarnation)
    os.killpg(victim.pid, signal.SIGINT)
    assert job.told(victim, survivors) == {"killed by SIGINT (KeyboardInterrupt)"}
    job.trains(*survivors)


def test_all_trainers_are_killed_at_once_and_replaced(job: Job, trio: list[Trainer]) -> None:
    for victim in trio:
        victim.strike(signal.SIGKILL)
    replacements = [job.start(victim.replica_id) for victim in trio]
    job.trains(*replacements)


# --- the lighthouse ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [False, True], ids=["same state", "empty state"])
def test_the_lighthouse_is_killed_and_starts_again(job: Job, trio: list[Trainer], empty: bool) -> None:
    before = [trainer.incarnation for trainer in trio]
    job.kill_lighthouse()
    job.start_lighthouse(empty=empty)
    job.trains(*trio)
    assert [trainer.incarnation for trainer in trio] == before


def test_a_trainer_is_killed_while_the_lighthouse_is_down(job: Job, trio: list[Trainer]) -> None:
    *survivors, victim = trio
    job.kill_lighthouse()
    victim.strike(signal.SIGKILL)
    victim.exit_code()
    job.start_lighthouse()
    told = {"killed by SIGKILL", "did not come back after the lighthouse restarted"}
    assert job.told(victim, survivors) <= told  # its listener tries for ten seconds to tell
    job.trains(*survivors)


def test_a_trainer_is_replaced_while_the_lighthouse_is_down(job: Job, trio: list[Trainer]) -> None:
    *survivors, victim = trio
    job.kill_lighthouse()
    victim.strike(signal.SIGKILL)
    replacement = job.start(victim.replica_id)
    job.start_lighthouse()
    job.told(victim, survivors)
    job.trains(*survivors, replacement)


def test_the_lighthouse_is_stopped_for_long_and_continued(job: Job, trio: list[Trainer]) -> None:
    before = [trainer.incarnation for trainer in trio]
    lines = [trainer.log.count("No word from the lighthouse") for trainer in trio]
    job.lighthouse.send(signal.SIGSTOP)
    job.until(
        lambda: all(t.log.count("No word from the lighthouse") > n for t, n in zip(trio, lines, strict=True)),
        "all have noticed",
    )
    job.lighthouse.send(signal.SIGCONT)
    job.trains(*trio)
    assert [trainer.incarnation for trainer in trio] == before


# --- the listener ends --------------------------------------------------------------------------------


def test_a_listener_is_killed_and_its_successor_witnesses(job: Job, trio: list[Trainer]) -> None:
    *survivors, victim = trio
    incarnation, (listener,) = victim.incarnation, victim.last["listeners"]
    os.kill(listener, signal.SIGKILL)
    job.until(
        lambda: victim.last["listeners"] not in ([], [listener]) and victim.is_watched,
        "a new listener watches",
    )
    job.trains(*trio)
    assert victim.incarnation == incarnation
    victim.strike(signal.SIGKILL)
    assert job.told(victim, survivors) == {"killed by SIGKILL"}
    job.trains(*survivors)


def test_a_listener_that_is_stopped_costs_one_life_and_is_replaced(job: Job, trio: list[Trainer]) -> None:
    victim = trio[-1]
    (listener,) = victim.last["listeners"]
    before = victim.incarnation
    victim.struck.append(before)
    os.kill(listener, signal.SIGSTOP)
    job.until(
        lambda: victim.incarnation != before and victim.last["listeners"] not in ([], [listener]),
        "it joins again, with another listener",
    )
    job.trains(*trio)


def test_a_listener_and_at_once_its_trainer_are_killed(job: Job, trio: list[Trainer]) -> None:
    *survivors, victim = trio
    (listener,) = victim.last["listeners"]
    os.kill(listener, signal.SIGKILL)
    victim.strike(signal.SIGKILL)
    assert job.told(victim, survivors) <= {"connection lost", "killed by SIGKILL"}
    job.trains(*survivors)


# --- a trainer is stopped -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGTSTP], ids=["SIGSTOP", "Ctrl-Z"])
def test_a_trainer_is_stopped_and_continued(job: Job, trio: list[Trainer], number: signal.Signals) -> None:
    *survivors, victim = trio
    victim.strike(number)
    assert job.told(victim, survivors) == {"process stopped (SIGSTOP)"}
    job.trains(*survivors)
    healed = len(victim.said("healed"))
    os.killpg(victim.pid, signal.SIGCONT)
    job.trains(*trio)
    assert victim.incarnation not in victim.struck
    assert len(victim.said("healed")) > healed


def test_a_stop_shorter_than_the_heartbeat_timeout_is_no_event(tmp_path: Path) -> None:
    with Job(tmp_path, *("--heartbeat-timeout-ms=60000", "--thread-heartbeat-timeout-ms=60000")) as job:
        both = job.fill("0", "1")
        before = [trainer.incarnation for trainer in both]
        os.kill(both[1].pid, signal.SIGSTOP)
        stopped_at_s = job.snapshot().uptime_s
        job.until(lambda: job.snapshot().uptime_s > stopped_at_s + 0.5, "it was stopped for half a second")
        os.kill(both[1].pid, signal.SIGCONT)
        job.trains(*both)
        assert [trainer.incarnation for trainer in both] == before
        assert not any(trainer.said("step", committed=False) for trainer in both)
        job.check()


# --- a trainer makes no progress ----------------------------------------------------------------------


@pytest.mark.parametrize("words", ["spin()", "hold_the_gil()"])
def test_a_trainer_that_makes_no_progress_and_comes_to_itself(tmp_path: Path, words: str) -> None:
    with Job(tmp_path) as job:
        both = survivor, victim = job.fill("0", "1", PROCGUARD_PROGRESS_TIMEOUT_SEC="2")
        victim.struck.append(victim.incarnation)
        victim.hang(words)
        assert job.told(victim, [survivor]) == {"no progress (none for 2 s in compute)"}
        job.trains(survivor)
        assert job.members()["1"].state is MemberState.FAILED, "its listener does not revive it"
        healed = len(victim.said("healed"))
        os.kill(victim.pid, signal.SIGUSR1)
        job.trains(*both)
        assert victim.incarnation not in victim.struck
        assert len(victim.said("healed")) > healed
        job.check()


@pytest.mark.parametrize(
    "words",
    ["spin(manager.report_progress)", "with manager.pause_progress('an evaluation'): spin()"],
    ids=["signs", "pause"],
)
def test_a_long_step_that_says_so_is_no_event(tmp_path: Path, words: str) -> None:
    with Job(tmp_path) as job:
        both = job.fill("0", "1", PROCGUARD_PROGRESS_TIMEOUT_SEC="2")
        before = [trainer.incarnation for trainer in both]
        both[1].hang(words)
        begun_at_s = job.snapshot().uptime_s
        job.until(lambda: job.snapshot().uptime_s > begun_at_s + 3, "it was at it for three seconds")
        os.kill(both[1].pid, signal.SIGUSR1)
        job.trains(*both)
        assert [trainer.incarnation for trainer in both] == before
        assert not any(trainer.said("step", committed=False) for trainer in both)
        job.check()


# --- healing ends in the middle -----------------------------------------------------------------------

BALLAST = {"BALLAST_BYTES": str(3 << 24)}


def midway(job: Job, mark: Path) -> tuple[list[Trainer], Trainer, Trainer]:
    """Three in training, the source of those three, and a newcomer that has half of its state."""
    trio = job.fill(*REPLICAS, **BALLAST)
    for trainer in trio:
        trainer.do(f"hesitate({str(mark)!r})")
    job.until(lambda: all(trainer.said("hesitates") for trainer in trio), "all will hesitate")
    newcomer = job.start("newcomer", **BALLAST)
    job.until(lambda: any(trainer.said("midway") for trainer in trio), "one serves its state")
    (source,) = [trainer for trainer in trio if trainer.said("midway")]
    return trio, source, newcomer


@pytest.mark.parametrize(
    ("number", "cause"),
    [(signal.SIGKILL, "killed by SIGKILL"), (signal.SIGSTOP, "process stopped (SIGSTOP)")],
    ids=["SIGKILL", "SIGSTOP"],
)
def test_a_source_is_struck_in_mid_transfer(tmp_path: Path, number: signal.Signals, cause: str) -> None:
    mark = tmp_path / "mark"
    with Job(tmp_path) as job:
        trio, source, newcomer = midway(job, mark)
        survivors = [trainer for trainer in trio if trainer is not source]
        source.strike(number)
        assert job.told(source, survivors) == {cause}
        job.trains(*survivors, newcomer)
        assert len(newcomer.said("healed")) == 1, "from another source"
        mark.with_suffix(".go").touch()
        if number is signal.SIGSTOP:
            os.killpg(source.pid, signal.SIGCONT)
            job.trains(*trio, newcomer)
        job.check()


def test_a_newcomer_is_killed_in_mid_transfer(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with Job(tmp_path) as job:
        trio, _, newcomer = midway(job, mark)
        job.until(lambda: job.is_watched(newcomer), "the newcomer's listener has taken over")
        newcomer.struck.append(str(job.members()["newcomer"].incarnation))
        newcomer.process.kill()
        mark.with_suffix(".go").touch()
        assert job.told(newcomer, trio) == {"killed by SIGKILL"}
        job.trains(*trio)
        job.check()


# --- several jobs -------------------------------------------------------------------------------------


def test_jobs_with_the_same_names_do_not_disturb_each_other(tmp_path: Path) -> None:
    with Job(tmp_path) as job:
        ours = job.fill("0", "1", PROCGUARD_JOB_ID="train")
        theirs = survivor, victim = job.fill("0", "1", PROCGUARD_JOB_ID="train2")
        before = [trainer.incarnation for trainer in ours]
        steps = [len(trainer.said("step", committed=False)) for trainer in ours]
        victim.hang()
        victim.strike(signal.SIGKILL)
        assert job.told(victim, [survivor]) == {"killed by SIGKILL"}
        job.trains(survivor)
        job.trains(*ours)
        assert not any(trainer.said("told") for trainer in ours)
        assert [trainer.incarnation for trainer in ours] == before
        assert [len(trainer.said("step", committed=False)) for trainer in ours] == steps
        alive, failed = MemberState.ALIVE, MemberState.FAILED
        for trainers, states in ((ours, [alive, alive]), (theirs, [alive, failed])):
            members = job.members(trainers[0].job_id)
            assert list(members) == ["0", "1"]
            assert [member.state for member in members.values()] == states
            assert [member.ranks[0].process.pid for member in members.values()] == [t.pid for t in trainers]
        job.check()


# --- a trainer has children ---------------------------------------------------------------------------


def test_the_end_of_a_forked_data_loader_is_no_event(job: Job, trio: list[Trainer]) -> None:
    before = [trainer.incarnation for trainer in trio]
    parent = trio[-1]
    parent.do("say('reaped', status=os.waitpid(fork(manager, lives_on=False), 0)[1])")
    job.until(lambda: parent.said("reaped", status=0), "the child has ended")
    errors = parent.said("inert")
    assert len(errors) == 3
    assert all(f"belongs to process {parent.pid}" in error["text"] for error in errors)
    job.trains(*trio)
    assert [trainer.incarnation for trainer in trio] == before


def test_children_that_live_on_do_not_hide_a_death(job: Job, trio: list[Trainer]) -> None:
    *survivors, victim = trio
    earlier = len(victim.said("child"))
    victim.do("fork(manager, lives_on=True)")
    victim.do(
        "import multiprocessing\n"
        "of_fork = multiprocessing.get_context('fork')\n"
        "of_fork.Process(target=data_loader, args=(manager,), kwargs={'lives_on': True}).start()"
    )
    victim.do("import subprocess\nsay('child', pid=subprocess.Popen(['sleep', '1000'], close_fds=False).pid)")
    job.until(lambda: len(victim.said("child")) == earlier + 3, "it has children")
    job.trains(*trio)
    victim.strike(signal.SIGKILL)
    assert job.told(victim, survivors) == {"killed by SIGKILL"}
    children = [psutil.Process(event["pid"]) for event in victim.said("child")[earlier:]]
    assert all(child.status() != psutil.STATUS_ZOMBIE for child in children)
    job.trains(*survivors)
    for child in children:
        child.kill()


# --- proactive recovery is off ------------------------------------------------------------------------


def test_without_proactive_recovery_a_killed_trainer_costs_its_step(job: Job) -> None:
    threaded = {"PROCGUARD_PROACTIVE_RECOVERY": "0", "PROCGUARD_JOB_ID": "threaded"}
    *survivors, victim = job.fill("t0", "t1", "t2", **threaded)
    assert not any(trainer.last["listeners"] for trainer in (*survivors, victim))
    victim.hang()
    victim.strike(signal.SIGKILL)
    job.trains(*survivors)
    assert job.members("threaded")["t2"].cause == Cause(CauseKind.CONNECTION_LOST)
    assert not any(trainer.said("told") for trainer in survivors)


# --- settings that cannot work ------------------------------------------------------------------------


@contextmanager
def http_server() -> Iterator[int]:
    """Something else that listens; its port."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_settings_that_cannot_work_are_one_clear_error(job: Job, trio: list[Trainer]) -> None:
    closed, holder = free_ports(), trio[0]
    with http_server() as http:
        cases = [
            (
                {"PROCGUARD_PROACTIVE_RECOVERY": "maybe"},
                "PROCGUARD_PROACTIVE_RECOVERY: 'maybe' is neither on nor off; write 1, true, yes or on",
            ),
            (
                {"PROCGUARD_LIGHTHOUSE": ""},
                "no lighthouse address: start one with `procguard-lighthouse --port 29510` and set",
            ),
            (
                {"PROCGUARD_LIGHTHOUSE": "nowhere.invalid"},
                "no lighthouse answered at nowhere.invalid:29510 (from PROCGUARD_LIGHTHOUSE) within 1 s: the "
                "name 'nowhere.invalid' does not resolve",
            ),
            (
                {"PROCGUARD_LIGHTHOUSE": f"localhost:{closed}"},
                f"nothing listens on port {closed} of localhost; start one with `procguard-lighthouse --port",
            ),
            (
                {"PROCGUARD_LIGHTHOUSE": f"127.0.0.1:{http}"},
                f"does not speak ProcGuard's protocol; is {http} the lighthouse's --port?",
            ),
            (
                {"PROCGUARD_LIGHTHOUSE": f"127.0.0.1:{job.port + 1}"},
                f"does not speak ProcGuard's protocol; is {job.port + 1} the lighthouse's --port?",
            ),
            (
                {"REPLICA_ID": holder.replica_id},
                f"the lighthouse at {job.address} (from PROCGUARD_LIGHTHOUSE) refused: replica_id "
                f"'{holder.replica_id}' is in use by a living process (pid {holder.pid} on "
                f"{socket.gethostname()}); end that process or give this one another replica_id",
            ),
        ]
        hopeless = [
            job.start("hopeless", PROCGUARD_CONNECT_TIMEOUT_SEC="1", **environ) for environ, _ in cases
        ]
        for trainer, (_, words) in zip(hopeless, cases, strict=True):
            assert trainer.exit_code() == 1
            *_, error = trainer.log.splitlines()
            assert words in error
            assert error.startswith("procguard.errors.")
            assert trainer.log.count("Traceback") == 1
    job.trains(*trio)


# --- noise on the ports -------------------------------------------------------------------------------

SILENT_COUNT = 200


def tls_client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="lighthouse")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


STRANGERS = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: lighthouse\r\n\r\n",
    "gRPC": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "TLS": tls_client_hello(),
    "half a ZMTP greeting": b"\xff\0\0\0\0\0\0\0\1\x7f",
    "nothing": b"",
}
HELLO = Hello(
    job_id="ghosts",
    replica_id="ghost",
    token=b"a token of bytes",
    process=Process("nowhere", "", 1, 0),
    min_replicas=1,
)
FRAMES = {
    "empty": b"",
    "garbage": b"\xc1" * (1 << 20),
    "oversized": bytes(2 << 20),
    "another version": msgpack.packb([99, 2, *msgpack.unpackb(encode(HELLO))[2:]]),
    "not a number": encode(HELLO._replace(progress_timeout_s=math.nan)),
    "a map with a key twice": b"\x82\xa1a\x01\xa1a\x02",
}


def test_noise_on_both_ports_disturbs_nobody(job: Job, trio: list[Trainer]) -> None:
    before = [trainer.incarnation for trainer in trio]
    steps = [len(trainer.said("step", committed=False)) for trainer in trio]
    with ExitStack() as noise:
        for port in (job.port, job.port + 1):
            for words in (*STRANGERS.values(), *[b""] * SILENT_COUNT):
                stranger = noise.enter_context(socket.create_connection(("127.0.0.1", port)))
                stranger.sendall(words)
        context = noise.enter_context(zmq.Context())
        for frame in FRAMES.values():
            dealer = noise.enter_context(context.socket(zmq.DEALER))
            dealer.set(zmq.LINGER, 0)
            dealer.connect(f"tcp://{job.address}")
            dealer.send(frame)
        job.lighthouse.error_line("an HTTP or gRPC client? The HTTP API and the dashboard are on")
        job.lighthouse.error_line("Dropped a frame that is no message:")
        job.trains(*trio)
        job.lighthouse.error_line("was closed as it said nothing for 5 s")
        job.trains(*trio)
    assert job.members().keys() >= set(REPLICAS)
    assert [trainer.incarnation for trainer in trio] == before
    assert [len(trainer.said("step", committed=False)) for trainer in trio] == steps


def test_a_failed_incarnation_is_not_brought_back_by_its_heartbeats(job: Job) -> None:
    lighthouse = job.lighthouse
    welcome = lighthouse.answer(HELLO)
    assert isinstance(welcome, Welcome)
    killed = Cause(CauseKind.PROCESS_EXIT, signal=signal.SIGKILL)
    assert isinstance(lighthouse.answer(Obituary("ghosts", HELLO.token, HELLO.process, killed)), Ack)
    beat = Heartbeat(HELLO.token, welcome.incarnation, True, False, Phase.COMPUTE, 1, 1)
    assert lighthouse.answer(beat) == Rejoin(HELLO.token, welcome.incarnation, killed)
    assert isinstance(lighthouse.answer(HELLO._replace(claim=Claim(welcome.incarnation, None))), Rejected)
    ghost = job.members("ghosts")["ghost"]
    assert (ghost.state, ghost.incarnation) == (MemberState.FAILED, welcome.incarnation)
