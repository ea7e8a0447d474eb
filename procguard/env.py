"""The environment variables: the only module that reads ``PROCGUARD_*`` and ``TORCHFT_*``.

One table, the fields of ``TrainerSettings`` and ``WorkerSettings``, says which variable gives which setting
and how its text is read. So all variables have the same manners: surrounding blanks are dropped, empty counts
as unset, ``TORCHFT_X`` is read when ``PROCGUARD_X`` is unset, and what cannot be read is a ``ConfigError``
that names the variable in which it stood, its value and what would have been accepted. All that is wrong is
reported at once.

A setting is None when its variable is unset: the defaults, and whether a variable or an argument wins,
are the caller's. The ``parse_*`` functions are public, so that an argument obeys the rules of its variable.

Runs inside the trainer, whose imports are the user's time: must import nothing but ``procguard.errors``
and the standard library.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from procguard.errors import ConfigError, UsageError

T = TypeVar("T")

LIGHTHOUSE_PORT = 29510
PORT_MAX = 65_535
HOST_CHARS_MAX = 253  # RFC 1035
NAME_BYTES_MAX = 255
SHOWN_CHARS_MAX = 80
TIMEOUT_S_MIN = 0.001  # finer than poll() can wait
TIMEOUT_S_MAX = 1_000_000_000  # thirty years, and well inside a timedelta

ADDRESS_FORMS = (
    "host:29510, tcp://host:29510, http://host:29510, [v6-address]:29510, or a host alone (port 29510)"
)

_LABEL = r"[a-z0-9_][a-z0-9_-]{0,62}"
_ADDRESS = re.compile(
    r"(?:(?:tcp|http)://)?"
    rf"(?:\[(?P<v6>[^\]]*:[^\]]*)\]|(?P<host>{_LABEL}(?:\.{_LABEL})*\.?))"
    r"(?::(?P<port>[0-9]{1,5}))?/?",
    re.IGNORECASE | re.ASCII,
)
_FLAGS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


@dataclass(frozen=True, slots=True)
class Address:
    """A host (a name, or an IP address without brackets) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _shown(text: str) -> str:
    """A value as an error shows it, on one line whatever it holds."""
    return repr(text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "...")


def parse_address(text: str) -> Address:
    """The address in ``text``, in any of ``ADDRESS_FORMS``; ``UsageError`` if it is none."""
    if match := _ADDRESS.fullmatch(text):
        address = Address(match["v6"] or match["host"], int(match["port"] or LIGHTHOUSE_PORT))
        if 1 <= address.port <= PORT_MAX and _is_host(address.host):
            return address
    raise UsageError(f"{_shown(text)} is not an address; write {ADDRESS_FORMS}")


def _is_host(host: str) -> bool:
    """Digits and dots must be an IPv4 address: a lone ``29510`` is a port whose host was forgotten."""
    if ":" not in host and host.strip("0123456789."):
        return len(host) <= HOST_CHARS_MAX
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def parse_flag(text: str) -> bool:
    """On or off, in the four spellings of each; ``UsageError`` if it is neither."""
    try:
        return _FLAGS[text.lower()]
    except KeyError:
        raise UsageError(
            f"{_shown(text)} is neither on nor off; write 1, true, yes or on, or else 0, false, no or off"
        ) from None


def parse_name(text: str) -> str:
    """The id of a job or a replica: 1 to ``NAME_BYTES_MAX`` bytes of UTF-8 without NUL, which ends the job
    id in a notice's frame."""
    try:
        bytes_count = len(text.encode())
    except UnicodeEncodeError:
        raise UsageError(f"{_shown(text)} is not UTF-8 text; write a name in UTF-8") from None
    if "\0" in text or not 1 <= bytes_count <= NAME_BYTES_MAX:
        raise UsageError(
            f"{_shown(text)} cannot be a name; write 1 to {NAME_BYTES_MAX} bytes of UTF-8, none of them NUL"
        )
    return text


def parse_path(text: str) -> Path:
    """A file or a directory; a leading ``~`` is the home directory."""
    if "\0" in text:
        raise UsageError(f"{_shown(text)} is not a path")
    return Path(os.path.expanduser(text))


def parse_seconds(text: str) -> timedelta:
    """A time span in seconds, such as ``60`` or ``0.5``."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not TIMEOUT_S_MIN <= seconds <= TIMEOUT_S_MAX:  # false for NaN too
        raise UsageError(
            f"{_shown(text)} is not a time span; write seconds, such as 60 or 0.5, "
            f"from {TIMEOUT_S_MIN} to {TIMEOUT_S_MAX}"
        )
    return timedelta(seconds=seconds)


def integer_parser(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """A parser of whole numbers from ``minimum`` to ``maximum`` (None: without end)."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if number < minimum or (maximum is not None and number > maximum):
            span = f"of {minimum} or more" if maximum is None else f"from {minimum} to {maximum}"
            raise UsageError(f"{_shown(text)} is not a whole number {span}")
        return number

    return parse


class Found(NamedTuple):
    """A variable that is set: the name under which it was found, and its text."""

    name: str
    text: str


def _find(name: str, environ: Mapping[str, str] = os.environ) -> Found | None:
    """The variable ``name``, or else its ``TORCHFT_`` twin (a name without our prefix is its own twin)."""
    for candidate in (name, name.replace("PROCGUARD_", "TORCHFT_", 1)):
        if text := environ.get(candidate, "").strip():
            return Found(candidate, text)
    return None


def found_in(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """The variable that says what ``name`` is to say: itself or, where only that is set, its twin."""
    found = _find(name, environ)
    return found.name if found else name


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable and the reading of its text; ``parse`` raises ``UsageError`` on what it cannot read."""

    name: str
    parse: Callable[[str], object]

    def read(self, environ: Mapping[str, str]) -> object | None:
        found = _find(self.name, environ)
        if found is None:
            return None
        try:
            return self.parse(found.text)
        except UsageError as error:
            raise ConfigError(f"{found.name}: {error}") from None


def _variable(name: str, parse: Callable[[str], T]) -> T | None:
    """A field and the variable that gives it; typed as ``parse``'s result, so that mypy compares the two."""
    return cast("T | None", field(default=None, metadata={"variable": Variable(name, parse)}))


GUARD_SOCKET = Variable("PROCGUARD_GUARD_SOCKET", parse_path)
"""The socket of the guard that `procguard` verbs ask, a `pathlib.Path`."""
RUNTIME_DIR = Variable("PROCGUARD_RUNTIME_DIR", parse_path)
"""The one folder where running guards are registered and looked for."""


def guard_folders(environ: Mapping[str, str] = os.environ, uid: int | None = None) -> tuple[Path, ...]:
    """Where a guard of this user registers (the first that is usable) and is looked for (all of them).

    A guard that a system service runs has no ``XDG_RUNTIME_DIR``, and whoever asks for it often has one; so
    each looks where the other may have been.
    """
    named = RUNTIME_DIR.read(environ)
    if isinstance(named, Path):
        return (named,)
    uid = os.geteuid() if uid is None else uid
    session = environ.get("XDG_RUNTIME_DIR", "").strip()
    folders = [Path(session) / "procguard"] if session.startswith("/") else []
    if os.path.isdir(f"/run/user/{uid}"):
        folders.append(Path(f"/run/user/{uid}/procguard"))
    return tuple(dict.fromkeys([*folders, Path(f"/tmp/procguard-{uid}")]))


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """What the variables say to a trainer; None where they say nothing."""

    lighthouse: Address | None = _variable("PROCGUARD_LIGHTHOUSE", parse_address)
    job_id: str | None = _variable("PROCGUARD_JOB_ID", parse_name)
    proactive_recovery: bool | None = _variable("PROCGUARD_PROACTIVE_RECOVERY", parse_flag)
    timeout: timedelta | None = _variable("PROCGUARD_TIMEOUT_SEC", parse_seconds)
    quorum_timeout: timedelta | None = _variable("PROCGUARD_QUORUM_TIMEOUT_SEC", parse_seconds)
    connect_timeout: timedelta | None = _variable("PROCGUARD_CONNECT_TIMEOUT_SEC", parse_seconds)
    progress_timeout: timedelta | None = _variable("PROCGUARD_PROGRESS_TIMEOUT_SEC", parse_seconds)
    quorum_retries: int | None = _variable("PROCGUARD_QUORUM_RETRIES", integer_parser(0))
    keys: Path | None = _variable("PROCGUARD_KEYS", parse_path)
    manager_port: int | None = _variable("PROCGUARD_MANAGER_PORT", integer_parser(0, PORT_MAX))

    replica_id: str | None = _variable("REPLICA_ID", parse_name)
    replica_group_id: int | None = _variable("REPLICA_GROUP_ID", integer_parser(0))
    num_replica_groups: int | None = _variable("NUM_REPLICA_GROUPS", integer_parser(1))

    # torchrun's: it runs one replica group, so its rank is the rank within the group.
    group_rank: int | None = _variable("RANK", integer_parser(0))
    group_world_size: int | None = _variable("WORLD_SIZE", integer_parser(1))
    master_addr: str | None = _variable("MASTER_ADDR", str)
    master_port: int | None = _variable("MASTER_PORT", integer_parser(0, PORT_MAX))
    run_id: str | None = _variable("TORCHELASTIC_RUN_ID", str)
    restart_count: int | None = _variable("TORCHELASTIC_RESTART_COUNT", integer_parser(0))

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> TrainerSettings:
        """The settings in ``environ``; one ``ConfigError``, a line each, for all that cannot be read."""
        return cls(**_read_fields(cls, environ))  # each value comes from its own field's parse


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a guard says to a worker that it has started; None where there is no guard."""

    guard: Address | None = _variable("PROCGUARD_GUARD", parse_address)
    worker_id: str | None = _variable("PROCGUARD_WORKER_ID", parse_name)

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> WorkerSettings:
        """The settings in ``environ``; one ``ConfigError``, a line each, for all that cannot be read."""
        return cls(**_read_fields(cls, environ))


def _read_fields(settings: type, environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    problems: list[str] = []
    for entry in fields(settings):
        variable: Variable = entry.metadata["variable"]
        try:
            values[entry.name] = variable.read(environ)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return values


def find_lighthouse_variables(
    keys: Iterable[str], environ: Mapping[str, str] = os.environ
) -> dict[str, Found]:
    """The variable ``PROCGUARD_LIGHTHOUSE_<KEY>`` of each configuration key that has one.

    Kubernetes sets ``PROCGUARD_LIGHTHOUSE_PORT=tcp://10.0.0.1:29510`` and others of that prefix for a
    service called procguard-lighthouse. So a port that is a URL is not ours, and unknown names are no error.
    """
    found = {key: _find(f"PROCGUARD_LIGHTHOUSE_{key.upper()}", environ) for key in keys}
    return {key: entry for key, entry in found.items() if entry and not entry.text.startswith("tcp://")}
