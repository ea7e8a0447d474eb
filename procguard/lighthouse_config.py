"""Configuration of the lighthouse: a YAML file, variables and flags merged into one validated model.

Three sources, each over the one before: the file, ``PROCGUARD_LIGHTHOUSE_<KEY>`` (read by ``env``), and the
flags of the command line. Every value remembers where it came from, because "must be at least 300" helps
only the reader who is told which of the three places to change. All that is wrong is reported at once, as
one ``ConfigError`` with a line for each problem; pydantic's own errors never reach a user.

The model is strict: the text ``"5"`` in the file is not a number, and an unknown key is an error with the
nearest known one. Nothing here touches a socket or looks up a name.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from procguard.env import LIGHTHOUSE_PORT, PORT_MAX, find_lighthouse_variables, parse_flag
from procguard.errors import ConfigError
from procguard.validation import KeyPath, problem_of, shown
from procguard.yaml_file import read_yaml

DURATION_MS_MAX = 24 * 60 * 60 * 1000
REPLICAS_MAX = 100_000
INTERVALS_PER_TIMEOUT_MIN = 3  # so that neither one lost beat nor two look like a death


def _bind_address(text: str) -> str:
    if text == "localhost":
        return "127.0.0.1"
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(
            "must be an IP address of this machine: 127.0.0.1 or ::1 for this machine alone, "
            "0.0.0.0 or :: for all its networks; a port may follow, as in [::]:29510"
        ) from None
    return text


def _directory(path: object) -> object:
    if path is None or isinstance(path, Path):
        return path
    if isinstance(path, str) and path and "\0" not in path:
        return Path(os.path.expanduser(path))
    raise ValueError("must be the path of a directory")


Milliseconds = Annotated[int, Field(ge=1, le=DURATION_MS_MAX)]


class LighthouseConfig(BaseModel):
    """Settings of one lighthouse; ``configs/lighthouse.yaml`` explains each of them.

    Built through ``load_lighthouse_config``, which turns pydantic's errors into ``ConfigError``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, title="the lighthouse")

    bind: Annotated[str, AfterValidator(_bind_address)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, lt=PORT_MAX)] = LIGHTHOUSE_PORT  # notices use the port after it
    keys: Annotated[Path | None, BeforeValidator(_directory)] = None
    insecure: bool = False
    min_replicas: Annotated[int, Field(ge=1, le=REPLICAS_MAX)] = 1
    heartbeat_interval_ms: Milliseconds = 100
    heartbeat_timeout_ms: Milliseconds = 1000
    thread_heartbeat_timeout_ms: Milliseconds = 5000
    disconnect_grace_ms: Milliseconds = 300
    join_timeout_ms: Milliseconds = 60_000
    state_dir: Annotated[Path | None, BeforeValidator(_directory)] = None
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _relations_hold(self) -> LighthouseConfig:
        if broken := list(_broken_relations(self)):
            raise PydanticCustomError("relations", "impossible together", {"broken": broken})
        return self


class _Broken(NamedTuple):
    """Two keys whose values cannot both stand, and why."""

    keys: tuple[str, str]
    rule: str


def _broken_relations(config: LighthouseConfig) -> Iterator[_Broken]:
    timeout = config.heartbeat_timeout_ms
    least = INTERVALS_PER_TIMEOUT_MIN * config.heartbeat_interval_ms
    if timeout < least:
        yield _Broken(
            ("heartbeat_timeout_ms", "heartbeat_interval_ms"),
            f"the timeout must be at least {INTERVALS_PER_TIMEOUT_MIN} intervals, or a beat or two that come "
            f"late are taken for a death; raise the timeout to {least}",
        )
    if config.thread_heartbeat_timeout_ms < timeout:
        yield _Broken(
            ("thread_heartbeat_timeout_ms", "heartbeat_timeout_ms"),
            "a thread of the trainer waits for the interpreter lock, so its timeout cannot be the shorter; "
            f"raise it to {timeout}",
        )
    if config.disconnect_grace_ms >= timeout:
        yield _Broken(
            ("disconnect_grace_ms", "heartbeat_timeout_ms"),
            "the grace after a lost connection must end before the timeout, or it has no effect; "
            f"lower it below {timeout}",
        )
    if config.keys is None and not config.insecure and not ipaddress.ip_address(config.bind).is_loopback:
        yield _Broken(
            ("bind", "insecure"),
            "other machines could reach the lighthouse, and it asks nobody for a key; make keys with "
            "`procguard keys new DIR --members a b c` and name them with --keys DIR; or say with --insecure "
            "(in YAML insecure: true, as a variable PROCGUARD_LIGHTHOUSE_INSECURE=1) that the network is "
            "trusted; or bind 127.0.0.1",
        )


class _Setting(NamedTuple):
    value: object
    place: str


def load_lighthouse_config(
    path: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> LighthouseConfig:
    """The configuration in the file at ``path``, under the variables of ``environ``, under ``overrides``.

    ``overrides`` are the flags of the command line by configuration key; None is a flag not given.
    Raises ``ConfigError``.
    """
    settings: dict[str, _Setting] = {}
    problems: list[str] = []
    for source in (_from_file(path), _from_variables(environ), _from_flags(overrides or {})):
        problems += _move_port_out_of_bind(source)
        problems += _misfits(source)  # each source alone: what a later one hides is wrong all the same
        settings.update(source)
    if problems:
        raise ConfigError("\n".join(problems))
    try:
        return LighthouseConfig.model_validate(_values(settings))
    except ValidationError as error:
        raise ConfigError("\n".join(_described_pairs(error, settings))) from None


_BIND_WITH_PORT = re.compile(
    r"(?:\[(?P<v6>[^\]]*:[^\]]*)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?", re.ASCII
)


def _move_port_out_of_bind(source: dict[str, _Setting]) -> Iterator[str]:
    """In place: ``bind = "[::]:29510"`` of one source becomes its ``bind`` and its ``port``.

    So the port has the rank of the source it stands in. Yields what is wrong: another port beside it.
    """
    bind = source.get("bind")
    found = _BIND_WITH_PORT.fullmatch(bind.value) if bind and isinstance(bind.value, str) else None
    if bind is None or found is None:
        return  # without a bind there is nothing to move; one that makes no sense is the model's to refuse
    source["bind"] = bind._replace(value=found["v6"] or found["host"])
    if found["port"] is None:
        return
    port = _Setting(int(found["port"]), bind.place)
    other = source.setdefault("port", port)
    if other.value != port.value:
        yield (
            f"bind = {bind.value!r} ({bind.place}) and port = {shown(other.value)} ({other.place}): "
            "two different ports; name the port in one of the two places"
        )


def _from_file(path: Path | None) -> dict[str, _Setting]:
    if path is None:
        return {}
    file = read_yaml(path, remedy="correct --config or leave it out")
    return {key: _Setting(value, file.place((key,))) for key, value in file.content.items()}


def _from_variables(environ: Mapping[str, str]) -> dict[str, _Setting]:
    found = find_lighthouse_variables(LighthouseConfig.model_fields, environ)
    return {key: _Setting(_typed(key, variable.text), variable.name) for key, variable in found.items()}


def _typed(key: str, text: str) -> object:
    """A variable's text as its key's type; what does not fit stays text, and the model refuses it."""
    kind = LighthouseConfig.model_fields[key].annotation
    try:
        return int(text) if kind is int else parse_flag(text) if kind is bool else text
    except ValueError:
        return text


def _from_flags(overrides: Mapping[str, object]) -> dict[str, _Setting]:
    given = {key: value for key, value in overrides.items() if value is not None}
    return {key: _Setting(value, "--" + key.replace("_", "-")) for key, value in given.items()}


def _misfits(source: Mapping[str, _Setting]) -> Iterator[str]:
    """What is wrong with single keys of one source; which two cannot stand together is not judged here."""

    def place(path: KeyPath) -> str:
        return source[str(path[0])].place

    try:
        LighthouseConfig.model_validate(_values(source))
    except ValidationError as error:
        for details in error.errors(include_url=False):
            if details["type"] != "relations":
                yield str(problem_of(details, LighthouseConfig, place))


def _values(settings: Mapping[str, _Setting]) -> dict[str, object]:
    return {key: setting.value for key, setting in settings.items()}


def _described_pairs(error: ValidationError, settings: Mapping[str, _Setting]) -> Iterator[str]:
    for details in error.errors(include_url=False):
        for broken in details["ctx"]["broken"]:
            yield _describe_pair(broken, settings)


def _describe_pair(broken: _Broken, settings: Mapping[str, _Setting]) -> str:
    defaults = {
        key: _Setting(field.default, "default") for key, field in LighthouseConfig.model_fields.items()
    }
    shown = [(key, settings.get(key, defaults[key])) for key in broken.keys]
    return (
        " and ".join(f"{key} = {setting.value!r} ({setting.place})" for key, setting in shown)
        + f": {broken.rule}"
    )
