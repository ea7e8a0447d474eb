"""The guard's YAML: what can be read, what is said of what cannot, and that all of it is said at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procguard.config import ConfigLoader, GuardConfig
from procguard.errors import ConfigError

WriteYaml = Callable[[str], Path]


@pytest.fixture
def write_yaml(tmp_path: Path) -> WriteYaml:
    def write(text: str) -> Path:
        path = tmp_path / "g.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems_of(path: Path, environ: dict[str, str] | None = None) -> list[str]:
    """Each problem, without the file's name."""
    _, problems = ConfigLoader(path, environ if environ is not None else {"HOME": "/home/ada"}).check()
    return [str(problem).removeprefix(f"{path}, ") for problem in problems]


WORKER = "workers:\n- worker_id: a\n  command: sleep 1\n"


# --- what can be read ---


@pytest.mark.parametrize("text", ["", "workers:\n", "workers: []\n", "recovery:\n", "web: {}\n"])
def test_a_file_without_workers_is_valid(write_yaml: WriteYaml, text: str) -> None:
    path = write_yaml(text)
    config = ConfigLoader(path).load()
    assert config.workers == ()
    state_file = str(path.parent / "procguard_state.json")
    assert config == GuardConfig(state=config.state.model_copy(update={"state_file": state_file}))
    assert config.state.state_file == state_file


def test_a_worker_needs_an_id_and_a_command(write_yaml: WriteYaml) -> None:
    [worker] = ConfigLoader(str(write_yaml(WORKER))).load().workers
    assert (worker.worker_id, worker.command) == ("a", ("sleep", "1"))
    assert (worker.max_restarts, worker.restart_delay, worker.stop_signal) == (5, 1.0, "SIGTERM")


def test_a_command_is_a_line_or_a_list(write_yaml: WriteYaml) -> None:
    text = """workers:
- {worker_id: line, command: "sh -c 'echo ${RANK} ~'"}
- {worker_id: list, command: [sh, -c, "echo ${RANK} ~"]}
"""
    line, listed = ConfigLoader(write_yaml(text)).load().workers
    assert line.command == listed.command == ("sh", "-c", "echo ${RANK} ~")


def test_every_section_is_taken(write_yaml: WriteYaml) -> None:
    text = """
monitoring: {interval: 2, heartbeat_timeout: 6, zombie_detection: false, cpu_threshold: 0.5,
             memory_threshold: 3}
recovery: {enable_auto_recovery: false, stop_all_on_failure: false, task_reassignment: false,
           recovery_timeout: 60, max_recovery_attempts: 1}
communication: {adapter_type: zmq, adapter_config: {host: "::1", port_base: 0, timeout: 100}}
state: {state_file: run/s.json, auto_save: false}
logging: {level: warning, file: guard.log, format: '%(message)s'}
web: {enabled: true, host: localhost, port: 1}
"""
    path = write_yaml(text)
    config = ConfigLoader(path).load()
    assert config.monitoring.heartbeat_timeout == 6.0
    assert config.recovery.max_recovery_attempts == 1
    assert config.communication.adapter_config.port_base == 0
    assert config.state.state_file == str(path.parent / "run/s.json")
    assert (config.logging.level, config.logging.file) == ("WARNING", str(path.parent / "guard.log"))
    assert (config.web.enabled, config.web.port) == (True, 1)


def test_a_class_of_ones_own_is_told_whatever_stands_there(write_yaml: WriteYaml) -> None:
    text = "communication: {adapter_type: 'my.place:Adapter', adapter_config: {colour: red, depth: [1]}}\n"
    config = ConfigLoader(write_yaml(text)).load().communication
    assert config.adapter_config.model_extra == {"colour": "red", "depth": [1]}


@pytest.mark.parametrize(("written", "taken"), [("TERM", "SIGTERM"), ("sigint", "SIGINT"), ("SIGUSR1",) * 2])
def test_a_signal_by_any_of_its_names(write_yaml: WriteYaml, written: str, taken: str) -> None:
    [worker] = ConfigLoader(write_yaml(WORKER + f"  stop_signal: {written}\n")).load().workers
    assert worker.stop_signal == taken


def test_a_configuration_does_not_change(write_yaml: WriteYaml) -> None:
    config = ConfigLoader(write_yaml(WORKER)).load()
    with pytest.raises(ValueError, match="frozen"):
        config.workers[0].max_restarts = 1  # type: ignore[misc]


# --- paths and variables ---


def test_a_relative_path_is_relative_to_the_files_folder(
    write_yaml: WriteYaml, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_yaml(WORKER + "  pid_file: a.pid\n  log_file: ../a.log\n  working_dir: .\n")
    monkeypatch.chdir("/")
    for named in (path, Path(os.path.relpath(path))):
        [worker] = ConfigLoader(named).load().workers
        assert worker.pid_file == str(path.parent / "a.pid")
        assert worker.log_file == str(path.parent.parent / "a.log")
        assert worker.working_dir == str(path.parent)


def test_variables_and_the_home_directory_in_paths_and_variables_alone_in_env(write_yaml: WriteYaml) -> None:
    text = WORKER + (
        "  pid_file: ~/${RUN}/a.pid\n"
        "  log_file: ${LOGS:-/var/log}/a.log\n"
        "  env: {X: '~/${RUN}', Y: '$RUN $${RUN}', Z: '${EMPTY:-z}', E: '${EMPTY}', '${RUN}': x}\n"
    ).replace(", '${RUN}': x", "")
    environ = {"HOME": "/home/ada", "RUN": "run", "EMPTY": ""}
    [worker] = ConfigLoader(write_yaml(text), environ, look_at_machine=False).load().workers
    assert worker.pid_file == "/home/ada/run/a.pid"
    assert worker.log_file == "/var/log/a.log"
    assert worker.env == {"X": "~/run", "Y": "$RUN ${RUN}", "Z": "z", "E": ""}


def test_what_was_filled_in_is_not_filled_in_again(write_yaml: WriteYaml) -> None:
    path = write_yaml("state: {state_file: 'a$${HOME}/s.json'}\n" + WORKER + "  log_file: 'a$${HOME}/l'\n")
    config = ConfigLoader(path, {"HOME": "/x"}).load()
    assert config.state.state_file == str(path.parent / "a${HOME}/s.json")
    assert config.workers[0].log_file == str(path.parent / "a${HOME}/l")


def test_the_state_file_is_known_whatever_else_is_wrong(write_yaml: WriteYaml) -> None:
    for text, file in [
        ("state: {state_file: ~/s.json}\nworkers: 5\n", Path("/home/ada/s.json")),
        ("state: {state_file: a/s.json, auto_save: 7}\n", None),
        ("stat: {}\n", None),
        ("state: 5\n", None),
        ("state: {state_file: 5}\n", None),
    ]:
        path = write_yaml(text)
        near = path.parent / ("a/s.json" if "a/s" in text else "procguard_state.json")
        assert ConfigLoader(path, {"HOME": "/home/ada"}).state_file() == (file or near)
    with pytest.raises(ConfigError, match="needs the variable NOPE"):
        ConfigLoader(write_yaml("state: {state_file: '${NOPE}'}\n"), {}).state_file()
    with pytest.raises(ConfigError, match="cannot be read"):
        ConfigLoader(path.parent / "no.yaml").state_file()


def test_workers_that_share_an_alias_are_filled_in_each(write_yaml: WriteYaml) -> None:
    text = """workers:
- {worker_id: a, command: sleep 1, env: &env {X: "${HOME}"}}
- {worker_id: b, command: sleep 1, env: *env}
"""
    first, second = ConfigLoader(write_yaml(text), {"HOME": "/${HOME}"}).load().workers
    assert first.env == second.env == {"X": "/${HOME}"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("env: {X: '${NOPE}'}", "env.X = '${NOPE}' needs the variable NOPE, which is not set; set it"),
        ("pid_file: ${NOPE}/a", "pid_file = '${NOPE}/a' needs the variable NOPE"),
        ("env: {X: '${1}'}", "env.X = '${1}' has a ${ that is no ${NAME}"),
        ("pid_file: '${EMPTY:-}'", "pid_file = '${EMPTY:-}' is empty once its variables are filled in"),
    ],
)
def test_what_cannot_be_filled_in(write_yaml: WriteYaml, line: str, said: str) -> None:
    [problem] = problems_of(write_yaml(WORKER + f"  {line}\n"))
    assert problem.startswith(f"line 4: workers[0].{said}")


# --- what cannot be ---


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("comand: x", "comand = 'x' is not a key of a worker; did you mean command?"),
        ("max_restarts: '5'", "max_restarts = '5' must be a whole number"),
        ("max_restarts: -1", "max_restarts = -1 must be greater than or equal to 0"),
        ("stop_timeout: '5'", "stop_timeout = '5' must be a number"),
        ("stop_timeout: true", "stop_timeout = True must be a number"),
        ("stop_timeout: .inf", "stop_timeout = inf must be"),
        ("stop_timeout: .nan", "stop_timeout = nan must be"),
        ("restart: sometimes", "restart = 'sometimes' must be 'on_failure', 'always' or 'never'"),
        ("env: [a]", "env = ['a'] must be lines of the form key: value"),
        ("env: {A: 4}", "env.A = 4 must be text; put it in quotes"),
        ("env: {A-B: x}", "env = {'A-B': 'x'} has the name 'A-B', which no variable can have"),
        ("tasks: t1", "tasks = 't1' must be a list"),
        ("tasks: [t1, '']", "tasks[1] = '' cannot be a task"),
        ("tasks: [t1, t1]", "tasks[1] = 't1' stands twice in this list"),
        ("stop_signal: SIGTEM", "stop_signal = 'SIGTEM' is not a signal that ends a process; did you mean"),
        ("stop_signal: SIGSTOP", "stop_signal = 'SIGSTOP' is not a signal that ends a process"),
        ("stop_signal: 15", "stop_signal = 15 must be text"),
        ("health_check_url: ftp://h", "health_check_url = 'ftp://h' must be an http or https URL"),
        ("health_check_url: 'http://'", "health_check_url = 'http://' must be an http or https URL"),
        ("health_check_url: 'http://h:x/'", "health_check_url = 'http://h:x/' must be an http or https"),
        ("log_rotation: {max_byte: 1}", "log_rotation.max_byte = 1 is not a key of log_rotation; did you"),
        ("log_rotation: {max_bytes: 1}", "log_rotation.max_bytes = 1 must be greater than or equal"),
        ("restart_delay_max: 0.5", "restart_delay_max = 0.5 is less than restart_delay = 1"),
        ("depends_on: [b]", "depends_on[0] = 'b' is not a worker of this file; its workers are a"),
        ("depends_on: [a]", "depends_on = ['a'] closes a circle in which each waits for the next: a -> a;"),
        ("working_dir: /no/such", "working_dir = '/no/such' does not exist; make it"),
        ("working_dir: g.yaml", "working_dir = '"),
        ("pid_file: g.yaml/a", "pid_file = '"),
        ("pid_file: .", "pid_file = '"),
        ("log_file: ''", "log_file = '' must be a path"),
        ("on_supervisor_death: die", "on_supervisor_death = 'die' must be 'keep' or 'kill'"),
    ],
)
def test_a_workers_key_that_cannot_be(write_yaml: WriteYaml, line: str, said: str) -> None:
    [problem] = problems_of(write_yaml(WORKER + f"  {line}\n"))
    assert problem.startswith(f"line 4: workers[0].{said}")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("''", "'' is empty; write what to run"),
        ("[]", "[] names no program"),
        ('"sh -c \'x"', '"sh -c \'x" cannot be split into words (no closing quotation)'),
        ("no-such-program 1", "'no-such-program 1' starts with no-such-program, which is not found in PATH"),
        ("./g.yaml", "'./g.yaml' starts with ./g.yaml, "),
        ("~/train", "'~/train' starts with ~/train, and there is no file"),
        ("/etc/passwd", "'/etc/passwd' starts with /etc/passwd, which is not executable; chmod +x /etc/pa"),
    ],
)
def test_a_command_that_cannot_run(write_yaml: WriteYaml, command: str, said: str) -> None:
    path = write_yaml(f"workers:\n- worker_id: a\n  command: {command}\n")
    [problem] = problems_of(path)
    assert problem.startswith(f"line 3: workers[0].command = {said}")


def test_each_word_of_a_command_is_text(write_yaml: WriteYaml) -> None:
    path = write_yaml("workers: [{worker_id: a, command: [sleep, 1]}]\n")
    assert problems_of(path) == ["line 1: workers[0].command[1] = 1 must be text; put it in quotes"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("monitor: {}", "monitor = {} is not a key of the guard; did you mean monitoring?"),
        ("workers: 5", "workers = 5 must be a list; write each worker as - worker_id: NAME"),
        ("workers: {a: 1}", "workers = {'a': 1} must be a list"),
        ("workers: [a]", "workers[0] = 'a' must be lines of the form key: value"),
        ("recovery: yes", "recovery = True must be lines of the form key: value"),
        ("monitoring: {intervall: 1}", "monitoring.intervall = 1 is not a key of monitoring; did you mean i"),
        ("monitoring: {cpu_threshold: -1}", "monitoring.cpu_threshold = -1 must be greater than or equal"),
        ("recovery: {recovery_timeout: 0}", "recovery.recovery_timeout = 0 must be greater than 0"),
        ("communication: {adapter_type: redis}", "communication.adapter_type = 'redis' must be mock, zmq, l"),
        ("communication: {adapter_type: 'a:'}", "communication.adapter_type = 'a:' must be mock, zmq, ligh"),
        ("communication: {adapter_config: {timeout: 0.5}}", "communication.adapter_config.timeout = 0.5 m"),
        ("communication: {adapter_config: {port: 1}}", "communication.adapter_config.port = 1 is not a key"),
        ("communication: {adapter_config: {host: 'h:5'}}", "communication.adapter_config.host = 'h:5' must"),
        ("communication: {adapter_config: {host: '1.2'}}", "communication.adapter_config.host = '1.2' must"),
        ("logging: {level: loud}", "logging.level = 'loud' must be one of DEBUG, INFO, WARNING, ERROR"),
        ("logging: {format: '%(x'}", "logging.format = '%(x' must be text, json, or a format of Python's"),
        ("web: {port: 70000}", "web.port = 70000 must be less than or equal to 65535"),
        ("state: {state_file: ''}", "state.state_file = '' must be a path"),
        ("state: {state_file: /etc/passwd/s.json}", "state.state_file = '/etc/passwd/s.json' cannot be made"),
        ("logging: {file: /}", "logging.file = '/' is a folder; name a file in it"),
    ],
)
def test_a_key_of_the_guard_that_cannot_be(write_yaml: WriteYaml, text: str, said: str) -> None:
    [problem] = problems_of(write_yaml(text + "\n"))
    assert problem.startswith(f"line 1: {said}")


def test_a_timeout_of_less_than_three_intervals_names_both(write_yaml: WriteYaml) -> None:
    assert problems_of(write_yaml("monitoring: {interval: 4}\n")) == [
        "line 1: monitoring.heartbeat_timeout = 10.0 must be at least 3 times monitoring.interval = 4, "
        "or a beat or two that come late are taken for a hang; raise it to 12"
    ]


def test_tasks_do_not_move_where_that_may_be_forgotten(write_yaml: WriteYaml) -> None:
    text = "recovery: {task_reassignment: true}\nstate: {auto_save: false}\n"
    assert problems_of(write_yaml(text)) == [
        "line 2: state.auto_save = False must be true where recovery.task_reassignment = true: a guard that "
        "is killed forgets who got a task, and the next one gives it to another worker too; set one of the "
        "two back"
    ]


def test_the_keys_of_the_lighthouse_adapter(write_yaml: WriteYaml) -> None:
    text = "communication: {adapter_type: lighthouse, adapter_config: {job_id: 7, keys: '', jobs: x}}\n"
    assert [problem.split(";")[0] for problem in problems_of(write_yaml(text))] == [
        "line 1: communication.adapter_config.job_id = 7 must be the name of a job: text of 1 to 255 bytes",
        "line 1: communication.adapter_config.keys = '' must be the path of a key file",
        "line 1: communication.adapter_config.jobs = 'x' is not a key of the lighthouse adapter",
    ]


def test_workers_that_get_in_each_others_way(write_yaml: WriteYaml) -> None:
    text = """workers:
- {worker_id: a, command: sleep 1, tasks: [t], pid_file: p, log_file: l}
- {worker_id: b, command: sleep 1, tasks: [u, t], pid_file: p, log_file: l}
- {worker_id: a, command: sleep 1}
"""
    path = write_yaml(text)
    assert problems_of(path) == [
        "line 3: workers[1].tasks[1] = 't' is a task of a too; a task is one worker's: remove one of the two",
        f"line 3: workers[1].pid_file = '{path.parent}/p' is the pid_file of a too; give each its own",
        f"line 3: workers[1].log_file = '{path.parent}/l' is the log_file of a too; give each its own",
        "line 4: workers[2].worker_id = 'a' is already the name of workers[0]; "
        "give one of the two another name",
    ]


@pytest.mark.parametrize(
    ("first", "second", "phrase"),
    [
        ("w.log", "w.out", "sends stderr to '{folder}/w.err', which is the file for stderr of a too"),
        ("w.log", "w.err", "is the file for stderr of a too"),
        ("w.err", "w.log", "sends stderr to '{folder}/w.err', which is the log_file of a too"),
        ("w", "w.log", "sends stderr to '{folder}/w.err', which is the file for stderr of a too"),
    ],
)
def test_what_goes_to_stderr_is_not_mixed_either(
    write_yaml: WriteYaml, first: str, second: str, phrase: str
) -> None:
    text = f"""workers:
- {{worker_id: a, command: sleep 1, log_file: {first}}}
- {{worker_id: b, command: sleep 1, log_file: {second}}}
- {{worker_id: c, command: sleep 1, log_file: v.log}}
"""
    path = write_yaml(text)
    assert problems_of(path) == [
        f"line 3: workers[1].log_file = '{path.parent}/{second}' {phrase.format(folder=path.parent)}; "
        "give each a name that differs in more than its ending"
    ]


def test_each_circle_is_named_once_and_nobody_else_is_blamed(write_yaml: WriteYaml) -> None:
    text = "workers:\n" + "".join(
        f"- {{worker_id: {name}, command: sleep 1, depends_on: [{needs}]}}\n"
        for name, needs in [("a", "b"), ("b", "c"), ("c", "a"), ("d", "e"), ("e", "d"), ("f", "a"), ("g", "")]
    )
    problems = problems_of(write_yaml(text))
    assert len(problems) == 2
    circles = sorted(problem.split("the next: ")[1].split(";")[0] for problem in problems)
    assert circles[0] in ("a -> b -> c -> a", "b -> c -> a -> b", "c -> a -> b -> c")
    assert circles[1] in ("d -> e -> d", "e -> d -> e")


def test_whom_a_mistake_hides_is_not_called_unknown(write_yaml: WriteYaml) -> None:
    text = "workers:\n- {worker_id: a, command: sleep 1, depends_on: [b]}\n- {worker_id: b}\n"
    assert problems_of(write_yaml(text)) == [
        "line 3: workers[1].command is missing; write command: python train.py"
    ]


def test_all_that_is_wrong_is_said_at_once_from_top_to_bottom(write_yaml: WriteYaml) -> None:
    text = """workers:
- worker_id: a
  command: no-such-program
- worker_id: b
  comand: x
- worker_id: a
  command: sleep 1
monitoring: {interval: 5}
logging: {level: loud}
"""
    lines = [problem.split(":")[0] for problem in problems_of(write_yaml(text))]
    assert lines == ["line 3", "line 4", "line 5", "line 6", "line 8", "line 9"]
    with pytest.raises(ConfigError) as caught:
        ConfigLoader(write_yaml(text)).load()
    assert len(str(caught.value).splitlines()) == 6


@pytest.mark.parametrize(
    "text",
    [
        "communication: {adapter_type: 'a:B', adapter_config: &x {y: *x}}\n",
        "communication: {adapter_type: 'a:B', adapter_config: {y: &x [*x]}}\n",
        "workers: &x [*x]\n",
        "workers: [&x {worker_id: a, command: sleep 1, env: *x}]\n",
        "workers: [{worker_id: a, command: &x [sleep, *x]}]\n",
        "state: &x {state_file: *x}\n",
    ],
)
def test_what_holds_itself(write_yaml: WriteYaml, text: str) -> None:
    config, problems = ConfigLoader(write_yaml(text)).check()
    assert config is None
    assert all(len(str(problem)) < 2000 for problem in problems)


def test_more_workers_than_a_guard_takes(write_yaml: WriteYaml) -> None:
    [problem] = problems_of(write_yaml("workers:\n" + "- {}\n" * 10_001))
    assert "holds 10001 workers; a guard takes 10000" in problem


def test_a_key_that_stands_twice(write_yaml: WriteYaml) -> None:
    path = write_yaml(WORKER + "  command: sleep 2\n")
    with pytest.raises(ConfigError, match=r"line 4: the key command is already set above"):
        ConfigLoader(path).load()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: cannot be read \(No such file"):
        ConfigLoader(tmp_path / "no.yaml").load()


def test_thousands_of_mistakes_are_told_in_part(write_yaml: WriteYaml) -> None:
    path = write_yaml("workers:\n" + "- {}\n" * 5_000)
    with pytest.raises(ConfigError) as caught:
        ConfigLoader(path).load()
    assert str(caught.value).endswith("... and 9900 more")


WORDS = ["workers", "worker_id", "command", "env", "state", "a", "${X}", "~", "5", "1.5", "null", "true"]


@given(
    st.recursive(
        st.sampled_from(WORDS),
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
            | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3).map(
                lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs.items()) + "}"
            )
        ),
    )
)
def test_whatever_the_file_holds_it_is_a_configuration_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any_guard.yaml"
    path.write_text(f"workers: {text}\n", encoding="utf-8")
    config, problems = ConfigLoader(path, {}).check()
    assert (config is None) == bool(problems)
    assert all(str(problem).startswith(str(path)) for problem in problems)
