"""The lighthouse's configuration: three sources, one model, and what is said of what cannot work."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procguard.config import LighthouseConfig, load_lighthouse_config
from procguard.errors import ConfigError
from procguard.yaml_file import FILE_BYTES_MAX, read_yaml

SHIPPED = Path(__file__).parent.parent / "configs" / "lighthouse.yaml"

WriteYaml = Callable[[str], Path]


@pytest.fixture
def write_yaml(tmp_path: Path) -> WriteYaml:
    def write(text: str) -> Path:
        path = tmp_path / "l.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problem_of(
    path: Path | None = None,
    overrides: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
) -> str:
    with pytest.raises(ConfigError) as caught:
        load_lighthouse_config(path, overrides, environ or {})
    return str(caught.value)


# --- what can be read ---


def test_the_shipped_file_holds_the_defaults_of_every_key() -> None:
    content = read_yaml(SHIPPED, remedy="").content
    assert sorted(content) == sorted(LighthouseConfig.model_fields)
    assert load_lighthouse_config(SHIPPED, {}, {}) == LighthouseConfig() == load_lighthouse_config(environ={})


def test_the_shipped_file_tells_the_default_and_the_unit_of_each_key() -> None:
    told: dict[str, str] = {}
    comment = ""
    for line in SHIPPED.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            told[line.split(":")[0]] = comment
        comment = comment + line if line.startswith("#") else ""
    for key, field in LighthouseConfig.model_fields.items():
        default = "null" if field.default is None else str(field.default).lower()
        assert re.search(rf"Default {re.escape(default)}\b", told[key]), key
        assert "milliseconds" in told[key] or not key.endswith("_ms"), key


def test_flags_go_over_variables_over_the_file(write_yaml: WriteYaml) -> None:
    path = write_yaml("port: 1\nmin_replicas: 1\nlog_format: json\n")
    environ = {"PROCGUARD_LIGHTHOUSE_MIN_REPLICAS": "2", "PROCGUARD_LIGHTHOUSE_PORT": "2"}
    config = load_lighthouse_config(path, {"port": 3, "bind": None}, environ)
    assert (config.port, config.min_replicas, config.log_format) == (3, 2, "json")
    assert config.bind == "127.0.0.1"


def test_a_variable_for_every_key() -> None:
    environ = {
        "PROCGUARD_LIGHTHOUSE_BIND": "0.0.0.0",
        "PROCGUARD_LIGHTHOUSE_PORT": "0",
        "PROCGUARD_LIGHTHOUSE_KEYS": "/etc/keys",
        "PROCGUARD_LIGHTHOUSE_INSECURE": "yes",
        "PROCGUARD_LIGHTHOUSE_MIN_REPLICAS": "2",
        "PROCGUARD_LIGHTHOUSE_HEARTBEAT_INTERVAL_MS": "10",
        "PROCGUARD_LIGHTHOUSE_HEARTBEAT_TIMEOUT_MS": "30",
        "PROCGUARD_LIGHTHOUSE_THREAD_HEARTBEAT_TIMEOUT_MS": "30",
        "PROCGUARD_LIGHTHOUSE_DISCONNECT_GRACE_MS": "29",
        "PROCGUARD_LIGHTHOUSE_JOIN_TIMEOUT_MS": "1",
        "PROCGUARD_LIGHTHOUSE_STATE_DIR": "/var/lib/lighthouse",
        "PROCGUARD_LIGHTHOUSE_LOG_FORMAT": "json",
        "PROCGUARD_LIGHTHOUSE_LOG_LEVEL": "debug",
    }
    assert load_lighthouse_config(environ=environ) == LighthouseConfig(
        bind="0.0.0.0",
        port=0,
        keys=Path("/etc/keys"),
        insecure=True,
        min_replicas=2,
        heartbeat_interval_ms=10,
        heartbeat_timeout_ms=30,
        thread_heartbeat_timeout_ms=30,
        disconnect_grace_ms=29,
        join_timeout_ms=1,
        state_dir=Path("/var/lib/lighthouse"),
        log_format="json",
        log_level="debug",
    )
    assert len(environ) == len(LighthouseConfig.model_fields)


@pytest.mark.parametrize("text", ["", "# nothing set\n", "---\n"])
def test_an_empty_file_is_the_defaults(write_yaml: WriteYaml, text: str) -> None:
    assert load_lighthouse_config(write_yaml(text), environ={}) == LighthouseConfig()


def test_the_home_directory_can_be_meant(write_yaml: WriteYaml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert load_lighthouse_config(write_yaml("state_dir: ~/lh"), environ={}).state_dir == Path("/home/ada/lh")


@pytest.mark.parametrize(("text", "address"), [("localhost", "127.0.0.1"), ("127.0.0.2",) * 2, ("::1",) * 2])
def test_loopback_needs_no_word(text: str, address: str) -> None:
    assert load_lighthouse_config(None, {"bind": text}, {}).bind == address


@pytest.mark.parametrize(
    ("text", "bind", "port"),
    [
        ("127.0.0.1:4000", "127.0.0.1", 4000),
        ("localhost:4000", "127.0.0.1", 4000),
        ("[::1]:0", "::1", 0),
        ("[::1]", "::1", 29510),
        ("::1", "::1", 29510),
    ],
)
def test_the_port_may_stand_in_the_bind(write_yaml: WriteYaml, text: str, bind: str, port: int) -> None:
    for config in (
        load_lighthouse_config(None, {"bind": text}, {}),
        load_lighthouse_config(None, None, {"TORCHFT_LIGHTHOUSE_BIND": text}),
        load_lighthouse_config(write_yaml(f"bind: '{text}'\n"), environ={}),
    ):
        assert (config.bind, config.port) == (bind, port)


def test_the_port_in_a_bind_has_the_rank_of_its_source(write_yaml: WriteYaml) -> None:
    path = write_yaml("bind: 127.0.0.1:1\n")
    assert load_lighthouse_config(path, {"port": 2}, {}).port == 2
    flags = {"bind": "127.0.0.1:4", "port": 4}
    assert load_lighthouse_config(path, flags, {"PROCGUARD_LIGHTHOUSE_PORT": "3"}).port == 4


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        LighthouseConfig().port = 1  # type: ignore[misc]


# --- what cannot ---


def test_an_unknown_key_is_told_the_nearest_known_one(write_yaml: WriteYaml) -> None:
    path = write_yaml("port: 1\nmin_replica: 3\n")
    assert problem_of(path) == (
        f"{path}, line 2: min_replica = 3 is not a key of the lighthouse; did you mean min_replicas?"
    )


def test_an_unknown_key_like_no_other_is_told_all(write_yaml: WriteYaml) -> None:
    problem = problem_of(write_yaml("zebra: 1\n"))
    assert "the keys are bind, port, keys, insecure, min_replicas" in problem


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("port: '29510'", "port = '29510' must be a whole number"),
        ("port: 29510.5", "port = 29510.5 must be a whole number"),
        ("port: true", "port = True must be a whole number"),
        ("port:", "port = None must be a whole number"),
        ("port: 65535", "port = 65535 must be less than 65535"),
        ("port: -1", "port = -1 must be greater than or equal to 0"),
        ("port: {a: 1}", "port = {'a': 1} must be a whole number"),
        ("min_replicas: 0", "min_replicas = 0 must be greater than or equal to 1"),
        ("heartbeat_interval_ms: .nan", "heartbeat_interval_ms = nan must be a whole number"),
        ("join_timeout_ms: 86400001", "join_timeout_ms = 86400001 must be less than or equal to 86400000"),
        ("insecure: 1", "insecure = 1 must be true or false"),
        ("bind: 5", "bind = 5 must be text"),
        ("bind: my-host", "bind = 'my-host' must be an IP address of this machine"),
        ("log_format: xml", "log_format = 'xml' must be 'text' or 'json'"),
        ("log_level: loud", "log_level = 'loud' must be 'debug', 'info', 'warning' or 'error'"),
        ("state_dir: ''", "state_dir = '' must be the path of a directory"),
        ('state_dir: "a\\0b"', "state_dir = 'a\\x00b' must be the path of a directory"),
        ("state_dir: 5", "state_dir = 5 must be the path of a directory"),
    ],
)
def test_a_value_that_does_not_fit(write_yaml: WriteYaml, line: str, said: str) -> None:
    path = write_yaml(f"# a comment\n{line}\n")
    problem = problem_of(path)
    assert problem.startswith(f"{path}, line 2: {said}")
    assert len(problem.splitlines()) == 1


def test_the_place_of_a_bad_value_is_named() -> None:
    assert problem_of(environ={"PROCGUARD_LIGHTHOUSE_PORT": "http"}) == (
        "PROCGUARD_LIGHTHOUSE_PORT: port = 'http' must be a whole number"
    )
    assert problem_of(environ={"TORCHFT_LIGHTHOUSE_INSECURE": "maybe"}) == (
        "TORCHFT_LIGHTHOUSE_INSECURE: insecure = 'maybe' must be true or false"
    )
    assert problem_of(overrides={"min_replicas": 0}).startswith("--min-replicas: min_replicas = 0 must be")


def test_all_that_is_wrong_is_said_at_once(write_yaml: WriteYaml) -> None:
    path = write_yaml("min_replica: 3\nlog_format: xml\n")
    problem = problem_of(path, {"bind": "nowhere"}, {"PROCGUARD_LIGHTHOUSE_PORT": "x"})
    assert sorted(line.split(":")[0] for line in problem.splitlines()) == sorted(
        ["--bind", "PROCGUARD_LIGHTHOUSE_PORT", f"{path}, line 1", f"{path}, line 2"]
    )


def test_a_wrong_value_is_told_also_where_a_later_source_hides_it(write_yaml: WriteYaml) -> None:
    path = write_yaml("port: many\n")
    assert problem_of(path, {"port": 1}, {"PROCGUARD_LIGHTHOUSE_PORT": "-1"}).splitlines() == [
        f"{path}, line 1: port = 'many' must be a whole number",
        "PROCGUARD_LIGHTHOUSE_PORT: port = -1 must be greater than or equal to 0",
    ]


def test_a_pair_is_judged_by_what_counts_in_the_end(write_yaml: WriteYaml) -> None:
    path = write_yaml("heartbeat_timeout_ms: 100\ndisconnect_grace_ms: 50\n")
    assert load_lighthouse_config(path, {"heartbeat_timeout_ms": 300}, {}).heartbeat_timeout_ms == 300


def test_a_pair_that_cannot_stand_together_is_named_with_values_and_places(write_yaml: WriteYaml) -> None:
    path = write_yaml("heartbeat_timeout_ms: 299\ndisconnect_grace_ms: 100\n")
    assert problem_of(path) == (
        f"heartbeat_timeout_ms = 299 ({path}, line 1) and heartbeat_interval_ms = 100 (default): "
        "the timeout must be at least 3 intervals, or a beat or two that come late are taken for a death; "
        "raise the timeout to 300"
    )


@pytest.mark.parametrize(
    ("key", "value", "flag", "remedy"),
    [
        ("thread_heartbeat_timeout_ms", 999, "--thread-heartbeat-timeout-ms", "raise it to 1000"),
        ("disconnect_grace_ms", 1000, "--disconnect-grace-ms", "lower it below 1000"),
    ],
)
def test_each_pair_has_its_remedy(key: str, value: int, flag: str, remedy: str) -> None:
    problem = problem_of(overrides={key: value})
    assert problem.startswith(f"{key} = {value} ({flag}) and heartbeat_timeout_ms = 1000 (default): ")
    assert problem.endswith(remedy)


def test_several_impossible_pairs_are_all_named() -> None:
    problem = problem_of(overrides={"heartbeat_timeout_ms": 100, "thread_heartbeat_timeout_ms": 50})
    assert len(problem.splitlines()) == 3


@pytest.mark.parametrize("bind", ["0.0.0.0", "::", "10.0.0.7", "::ffff:10.0.0.7"])
def test_beyond_this_machine_only_when_it_is_said_out_loud(bind: str) -> None:
    problem = problem_of(overrides={"bind": bind})
    assert problem.startswith(f"bind = {bind!r} (--bind) and insecure = False (default): ")
    assert "--insecure" in problem
    assert "127.0.0.1" in problem
    assert load_lighthouse_config(None, {"bind": bind, "insecure": True}, {}).bind == bind


def test_two_ports_from_one_source() -> None:
    assert problem_of(overrides={"bind": "127.0.0.1:1", "port": 2}) == (
        "bind = '127.0.0.1:1' (--bind) and port = 2 (--port): two different ports; "
        "name the port in one of the two places"
    )


@pytest.mark.parametrize(
    ("bind", "said"),
    [
        ("127.0.0.1:65535", "--bind: port = 65535 must be less than 65535"),
        ("127.0.0.1:", "--bind: bind = '127.0.0.1:' must be an IP address of this machine"),
        (":29510", "--bind: bind = ':29510' must be an IP address of this machine"),
        ("[127.0.0.1]:1", "--bind: bind = '[127.0.0.1]:1' must be an IP address of this machine"),
        ("::1:29510", "--bind: bind = '::1:29510' must be an IP address of this machine"),
        ("my-host:29510", "--bind: bind = 'my-host' must be an IP address of this machine"),
        ("127.0.0.1:٣", "--bind: bind = '127.0.0.1:٣' must be an IP address of this machine"),
    ],
)
def test_a_bind_that_makes_no_sense(bind: str, said: str) -> None:
    problem = problem_of(overrides={"bind": bind})
    assert problem.startswith(said)
    assert len(problem.splitlines()) == 1


def test_a_port_in_the_bind_does_not_make_it_safe() -> None:
    assert "--insecure" in problem_of(overrides={"bind": "[::]:29510"})
    config = load_lighthouse_config(None, {"bind": "[::]:29510", "insecure": True}, {})
    assert (config.bind, config.port) == ("::", 29510)


# --- files that are no configuration ---


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "missing.yaml"
    assert problem_of(path) == (
        f"{path}: cannot be read (No such file or directory); correct --config or leave it out"
    )


def test_a_directory(tmp_path: Path) -> None:
    assert "cannot be read (Is a directory)" in problem_of(tmp_path)


@pytest.mark.parametrize(
    ("text", "shown"), [("- port\n", "['port']"), ("port 29510\n", "'port 29510'"), ("5", "5")]
)
def test_a_file_that_is_no_mapping(write_yaml: WriteYaml, text: str, shown: str) -> None:
    path = write_yaml(text)
    assert problem_of(path) == f"{path}: holds {shown}; write lines of the form key: value"


def test_a_key_that_stands_twice(write_yaml: WriteYaml) -> None:
    path = write_yaml("port: 1\nbind: ::1\nport: 2\n")
    assert problem_of(path) == f"{path}, line 3: the key port is already set above; remove one of the two"


def test_a_key_that_stands_twice_deep_inside(write_yaml: WriteYaml) -> None:
    path = write_yaml("port:\n  a: [{b: 1,\n    b: 2}]\n")
    assert problem_of(path).startswith(f"{path}, line 3: the key b is already set above")


@pytest.mark.parametrize("key", ["on", "8080", "~", "[a]", "{a: b}", "<<"])
def test_a_key_that_is_no_text(write_yaml: WriteYaml, key: str) -> None:
    path = write_yaml(f"? {key}\n: 1\n")
    problem = problem_of(path)
    assert problem.startswith(f"{path}, line 1: the key ")
    assert "Node(" not in problem


@pytest.mark.parametrize(
    "text",
    [
        "port: [1\n",
        "port: 1\n bind: 2\n",
        "\tport: 1\n",
        "port: *nowhere\n",
        "--- {}\n--- {}\n",
        "port: !!python/object:os.system {}\n",
        "port: !!int x\n",
        "port: !!bool x\n",
        "port: !!timestamp x\n",
        "port: 2026-13-45\n",
        "port: " + "9" * 5000,
        "port: \0\n",
    ],
)
def test_what_is_not_yaml(write_yaml: WriteYaml, text: str) -> None:
    path = write_yaml(text)
    problem = problem_of(path)
    assert problem.startswith(str(path))
    assert len(problem.splitlines()) == 1


def test_what_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "l.yaml"
    path.write_bytes(b"port: \xff\xfe\x00")
    assert problem_of(path).startswith(f"{path}: not readable as YAML")


def test_a_file_nested_beyond_reason(write_yaml: WriteYaml) -> None:
    assert problem_of(write_yaml("port: " + "[" * 5_000)).endswith("nested too deeply for a configuration")


def test_a_file_larger_than_any_configuration(tmp_path: Path) -> None:
    path = tmp_path / "l.yaml"
    path.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    assert (
        problem_of(path) == f"{path}: is larger than {FILE_BYTES_MAX} bytes; that cannot be a configuration"
    )


def test_a_bomb_of_aliases_is_shown_in_part(write_yaml: WriteYaml) -> None:
    levels = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert len(problem_of(write_yaml("\n".join(levels)))) < 20_000


def test_a_value_that_holds_itself(write_yaml: WriteYaml) -> None:
    assert "port = [[" in problem_of(write_yaml("port: &a [*a]\n"))


@given(st.text(alphabet=st.sampled_from("portbind:{}[]&*!<>|-?#'\"\n\t 0129.~%@`,\\"), max_size=80))
def test_whatever_the_file_holds_it_is_a_configuration_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        load_lighthouse_config(path, environ={})
    except ConfigError as error:
        assert str(path) in str(error)
