"""A job with keys, of real processes: it trains, survives, and obeys its operator alone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result

from procguard.adapters.zmq_key_files import add_key, revoke_key
from procguard.adapters.zmq_keys import MEMBER, Listed
from procguard.main import main
from procguard.messages import MemberState
from tests.job import Job, Trainer
from tests.keys import Keys
from tests.lighthouse.running import Lighthouse, Running

FLAGS = ("--bind=0.0.0.0", "--heartbeat-timeout-ms=2000")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("locked") / "keys")


@pytest.fixture(scope="module")
def job(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    folder = tmp_path_factory.mktemp("job")
    with Job(folder, f"--keys={keys.directory}", *FLAGS) as job:
        job.lighthouse.keys = keys.member()
        yield job


@pytest.fixture
def duo(job: Job, keys: Keys) -> list[Trainer]:
    return job.fill("a", "b", PROCGUARD_KEYS=str(keys.directory))


def procguard(job: Job, *arguments: str, **environ: str) -> Result:
    environ = {"PROCGUARD_LIGHTHOUSE": job.address, **environ}
    return CliRunner().invoke(main, arguments, env=environ)


def test_no_secret_is_where_others_could_see_it(job: Job, duo: list[Trainer], keys: Keys) -> None:
    secrets = keys.secrets()
    assert len(secrets) == 4
    seen = [job.snapshot(), *(trainer.log for trainer in duo), *job.lighthouse.seen]
    for pid in job.processes():
        process = psutil.Process(pid)
        seen += [process.cmdline(), process.environ()]
    assert any("procguard.client.listener" in str(line) for line in seen)
    assert not [secret for secret in secrets if secret in str(seen)]


def test_a_job_with_keys_survives_kill_9(job: Job, duo: list[Trainer], keys: Keys) -> None:
    survivor, victim = duo
    victim.strike(signal.SIGKILL)
    assert job.told(victim, [survivor]) == {"killed by SIGKILL"}
    job.trains(survivor)
    job.fill("a", "b", PROCGUARD_KEYS=str(keys.path("b")))
    job.check()


def test_a_lighthouse_with_keys_dies_and_nobody_is_lost(job: Job, duo: list[Trainer], keys: Keys) -> None:
    lives = [trainer.incarnation for trainer in duo]
    job.kill_lighthouse()
    job.start_lighthouse()
    job.lighthouse.keys = keys.member()
    job.trains(*duo)
    assert [trainer.incarnation for trainer in duo] == lives
    job.check()


def test_an_operator_ends_a_life_and_nobody_else_does(job: Job, duo: list[Trainer], keys: Keys) -> None:
    survivor, victim = duo
    key_of_a, key_of_op = str(keys.path("a")), str(keys.directory)
    refused = procguard(job, "kill", "b", PROCGUARD_KEYS=key_of_a)
    assert refused.exit_code == 1
    assert "member a" in refused.stderr and "is no operator" in refused.stderr
    keyless = procguard(job, "kill", "b")
    assert keyless.exit_code == 2
    assert "needs an operator's key" in keyless.stderr
    unknown = procguard(job, "kill", "zz", PROCGUARD_KEYS=key_of_op)
    assert unknown.exit_code == 2
    assert "no replica zz in any job; there is a (job default), b (job default)" in unknown.stderr
    nowhere = procguard(job, "kill", "b", "--job=other", PROCGUARD_KEYS=key_of_op)
    assert "no replica b in job other; there is nobody" in nowhere.stderr
    assert not survivor.said("told", incarnation=victim.incarnation)

    victim.struck.append(life := victim.incarnation)
    done = procguard(job, "kill", "b", "--job=default", PROCGUARD_KEYS=key_of_op)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"Replica b of job default: incarnation {life} is over\n"
    assert job.told(victim, [survivor]) == {"ended by an operator (op)"}
    job.trains(survivor, victim)
    assert victim.incarnation != life
    assert victim.process.poll() is None, "its process was not touched"
    shown = json.loads(procguard(job, "status", "--json", PROCGUARD_KEYS=key_of_op).stdout)
    assert shown["counters"]["kills asked for without an operator's key"] == 1
    job.lighthouse.error_line("ended by an operator (op)")
    job.check()


def test_a_newcomer_is_added_and_revoked_while_the_job_trains(
    job: Job, duo: list[Trainer], keys: Keys
) -> None:
    path = add_key(keys.directory, Listed(MEMBER, "c"))
    newcomer = job.start("c", PROCGUARD_KEYS=str(path))
    job.trains(*duo, newcomer)
    job.until(lambda: newcomer.is_watched, "its listener watches it")
    newcomer.struck.append(newcomer.incarnation)
    revoke_key(keys.directory, "c")
    job.told(newcomer, duo)
    job.trains(*duo)
    assert job.members()["c"].state is MemberState.FAILED
    newcomer.close()
    for pid in newcomer.last["listeners"]:  # it would go on telling of its trainer's end, to no avail
        os.kill(pid, signal.SIGKILL)


def test_status_without_a_key_says_what_it_needs(job: Job) -> None:
    shown = procguard(job, "status", "--timeout=0.2")
    assert shown.exit_code == 1
    assert "set PROCGUARD_KEYS to the key file" in shown.stderr


@pytest.mark.parametrize("has_key", [False, True])
def test_a_trainer_and_a_lighthouse_that_disagree_on_keys(keys: Keys, tmp_path: Path, has_key: bool) -> None:
    flags = [] if has_key else [f"--keys={keys.directory}"]
    environ = {"PROCGUARD_KEYS": str(keys.directory)} if has_key else {}
    with Lighthouse("--port=0", f"--state-dir={tmp_path}", *flags).listening() as lighthouse:
        environ |= {
            "PROCGUARD_LIGHTHOUSE": f"127.0.0.1:{lighthouse.port}",
            "PROCGUARD_CONNECT_TIMEOUT_SEC": "0.2",
            "REPLICA_ID": "a",
        }
        with Running("tests.trainer", environ=environ) as trainer:
            assert trainer.exit_code() == 1
            said = trainer.rest_of_errors().splitlines()[-1]
        assert said.startswith("procguard.errors.LighthouseUnreachable: no lighthouse answered at 127.0.0.1:")
        assert ("unset PROCGUARD_KEYS" if has_key else "set PROCGUARD_KEYS to") in said
        lighthouse.error_line("PROCGUARD_KEYS")


def test_a_lighthouse_that_others_reach_needs_keys_or_a_word(keys: Keys) -> None:
    with Running("procguard.lighthouse.cli", "--port=0", "--bind=0.0.0.0") as lighthouse:
        assert lighthouse.exit_code() == 2
        said = lighthouse.rest_of_errors()
    assert "procguard keys new DIR --members a b c" in said
    assert "--insecure" in said
    path = keys.path("a")
    with Running("procguard.lighthouse.cli", "--port=0", f"--keys={path.parent}") as lighthouse:
        assert lighthouse.exit_code() == 2
        assert "has no lighthouse.key" in lighthouse.rest_of_errors()


def test_ranks_of_a_group_talk_under_their_own_key(job: Job, keys: Keys) -> None:
    run = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "WORLD_SIZE": "2", "PROCGUARD_JOB_ID": "group"}
    ranks = [job.start("b", PROCGUARD_KEYS=str(keys.directory), RANK=str(rank), **run) for rank in range(2)]
    job.until(lambda: all(len(rank.said("step", committed=True)) > 2 for rank in ranks), "both ranks commit")
    for rank in ranks:
        rank.close()
