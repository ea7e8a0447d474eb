"""The key directory: made once, read by the lighthouse and, a file at a time, by its members.

::

    DIR/                   0700
      lighthouse.key       0600   the lighthouse's key pair
      allowed              0600   a line for each public key that may come in: role, name, key
      members/NAME.key     0600   a member's key pair and the lighthouse's public key: all that it needs
      operators/NAME.key   0600   the same for one who may end replicas

A lighthouse needs the first two, a member its one file. A secret file that others than its owner may read is
refused, as is an allow-list that others may write: both would be locks without a door. No error shows what
stands in a file.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import zmq
from zmq.utils import z85

from procguard.adapters.zmq_keys import (
    LIGHTHOUSE,
    MEMBER,
    MEMBER_WORDS,
    OPERATOR,
    VARIABLE,
    Listed,
    MemberKeys,
    ServerKeys,
    is_key,
    read_words,
    require_curve,
)
from procguard.errors import ConfigError, UsageError

LIGHTHOUSE_FILE = "lighthouse.key"
ALLOWED_FILE = "allowed"
FOLDERS = {MEMBER: "members", OPERATOR: "operators"}
SUFFIX = ".key"
KEY_FILE_BYTES_MAX = 1 << 12
ALLOWED_BYTES_MAX = 1 << 22
"""Tens of thousands of lines."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)
_SHOWN_MAX = 10


# --- making


def make_directory(directory: Path, members: Iterable[str], operators: Iterable[str]) -> None:
    """Make all keys of a new cluster.

    Raises:
        UsageError: a name cannot be one or stands twice, or the directory holds something already.
    """
    require_curve()
    wanted = [Listed(MEMBER, name) for name in members] + [Listed(OPERATOR, name) for name in operators]
    for listed in wanted:
        _check_name(listed.name)
    twice = sorted({name for _, name in wanted if [n for _, n in wanted].count(name) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)}: asked for twice; each member and operator has its own name")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(
            f"{directory}: is there already, and is never overwritten: name a new directory, or give this "
            f"one another member with `procguard keys add {directory} NAME`"
        )
    public, secret = _new_pair()
    with _in_words(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        for folder in FOLDERS.values():
            (directory / folder).mkdir(mode=0o700)
        _write_new(
            directory / LIGHTHOUSE_FILE,
            f"# ProcGuard: the secret key of the lighthouse. Whoever reads it can pose as the lighthouse.\n"
            f"role {LIGHTHOUSE}\npublic {public}\nsecret {secret}\n",
        )
        _write_new(directory / ALLOWED_FILE, _ALLOWED_HEAD)
    for listed in wanted:
        add_key(directory, listed)


_ALLOWED_HEAD = (
    "# ProcGuard: who may come in: role, name, public key. The lighthouse reads it again when it changes.\n"
)


def add_key(directory: Path, listed: Listed) -> Path:
    """Make one more key and list it; its file.

    Raises:
        UsageError: the name is taken, or cannot be one.
        ConfigError: the directory is none that ``make_directory`` made.
    """
    require_curve()
    _check_name(listed.name)
    server = _read_lighthouse(directory)["public"]
    with _one_writer(directory):
        known = read_allowed(directory / ALLOWED_FILE)
        path = directory / FOLDERS[listed.role] / f"{listed.name}{SUFFIX}"
        if any(other.name == listed.name for other in known.values()) or path.exists():
            raise UsageError(
                f"{listed.name}: has a key already, which is never overwritten; for another one, first "
                f"`procguard keys revoke {directory} {listed.name}`"
            )
        public, secret = _new_pair()
        keys = MemberKeys(str(path), listed, public, secret, server)
        _write_new(path, keys.to_text())
        try:
            _write_allowed(directory, {**known, public: listed})
        except BaseException:
            path.unlink()
            raise
    return path


def revoke_key(directory: Path, name: str) -> None:
    """Take a key off the list, and its file away if it is here."""
    with _one_writer(directory):
        known = read_allowed(directory / ALLOWED_FILE)
        kept = {public: listed for public, listed in known.items() if listed.name != name}
        if len(kept) == len(known):
            raise UsageError(f"{name}: no such key; `procguard keys list {directory}` shows those there are")
        _write_allowed(directory, kept)
        for folder in FOLDERS.values():
            (directory / folder / f"{name}{SUFFIX}").unlink(missing_ok=True)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:100]!r} cannot name a key: write up to 100 letters, digits, dots, hyphens, underscores"
        )


def _new_pair() -> tuple[str, str]:
    public, secret = zmq.curve_keypair()
    return z85.decode(public).hex(), z85.decode(secret).hex()


def _write_new(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _write_allowed(directory: Path, entries: dict[str, Listed]) -> None:
    """At once or not at all, for the lighthouse may be reading it."""
    lines = [f"{listed.role} {listed.name} {public}\n" for public, listed in entries.items()]
    fd, temporary = tempfile.mkstemp(prefix=f".{ALLOWED_FILE}-", dir=directory)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(_ALLOWED_HEAD + "".join(lines))
            file.flush()
            os.fsync(fd)
        os.replace(temporary, directory / ALLOWED_FILE)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Turns what the file system says into one message."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{error.filename or path}: {error.strerror}") from None


@contextmanager
def _one_writer(directory: Path) -> Iterator[None]:
    """Two who change the list at once take turns, or one of their changes would be lost."""
    with _in_words(directory):
        lock = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


# --- reading


def read_server(directory: Path) -> ServerKeys:
    """What a lighthouse needs. Raises ``ConfigError``."""
    require_curve()
    words = _read_lighthouse(directory)
    _check_pair(words["public"], words["secret"], directory / LIGHTHOUSE_FILE)
    path = directory / LIGHTHOUSE_FILE
    return ServerKeys(str(path), words["public"], words["secret"], AllowList(directory / ALLOWED_FILE))


def read_member(path: Path) -> MemberKeys:
    """A member's or an operator's key file. Raises ``ConfigError``."""
    require_curve()
    text = _read_secret(path)
    keys = MemberKeys.from_text(text, str(path))
    _check_pair(keys.public, read_words(text, str(path), MEMBER_WORDS)["secret"], path)
    return keys


def find_member(path: Path, name: str) -> Path:
    """The file that ``path`` means to the member called so: itself, or in a key directory the member's."""
    if not path.is_dir():
        return path
    found = path / FOLDERS[MEMBER] / f"{name}{SUFFIX}"
    if _NAME.fullmatch(name) and found.exists():
        return found
    named = [f"{path}: has no key for replica_id {name!r}"]
    names = _names_in(path / FOLDERS[MEMBER])
    named.append(f"it has {', '.join(names)}" if names else "and it is no directory of `procguard keys new`")
    raise ConfigError(f"{'; '.join(named)}. {VARIABLE} may also name one key file")


def find_person(path: Path) -> Path:
    """The file that ``path`` means to somebody at a keyboard: itself, or a directory's only operator's
    key, or where there is no operator any member's."""
    if not path.is_dir():
        return path
    for role, folder in ((OPERATOR, FOLDERS[OPERATOR]), (MEMBER, FOLDERS[MEMBER])):
        names = _names_in(path / folder)
        if len(names) == 1 or (names and role == MEMBER):
            return path / folder / f"{names[0]}{SUFFIX}"
        if names:
            raise ConfigError(
                f"{path}: has the keys of several operators ({', '.join(names)}): name the file of yours, "
                f"such as {path / folder / names[0]}{SUFFIX}"
            )
    raise ConfigError(f"{path}: holds no key of an operator or a member; name a key file")


def _names_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob(f"*{SUFFIX}"))[:_SHOWN_MAX]


def _read_lighthouse(directory: Path) -> dict[str, str]:
    path = directory / LIGHTHOUSE_FILE
    if directory.is_dir() and not path.exists():
        raise ConfigError(
            f"{directory}: has no {LIGHTHOUSE_FILE}; the lighthouse needs the directory that "
            f"`procguard keys new` made, a member only its own file ({VARIABLE})"
        )
    words = read_words(_read_secret(path), str(path), ("role", "public", "secret"))
    if words["role"] != LIGHTHOUSE:
        raise ConfigError(f"{path}: is the key of a {words['role'][:20]!r}, not of a lighthouse")
    return words


def _check_pair(public: str, secret: str, path: Path) -> None:
    derived = zmq.curve_public(z85.encode(bytes.fromhex(secret)))
    if z85.decode(derived).hex() != public:
        raise ConfigError(f"{path}: its public and its secret key do not belong together")


def _read_secret(path: Path) -> str:
    return _read(path, KEY_FILE_BYTES_MAX, 0o077, "a secret that others may read is none: chmod 600")


def _read(path: Path, bytes_max: int, forbidden: int, why: str) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(bytes_max + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); `procguard keys new` makes keys"
        ) from None
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path}: is no file")
    if stat.S_IMODE(mode) & forbidden:
        raise ConfigError(f"{path}: its permissions are {stat.S_IMODE(mode):04o}; {why} {path}")
    if len(content) > bytes_max:
        raise ConfigError(f"{path}: is larger than {bytes_max} bytes; that cannot be one of our key files")
    try:
        return content.decode("ascii")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a key file of ProcGuard: it is no plain text") from None


# --- the allow-list


def read_allowed(path: Path) -> dict[str, Listed]:
    """Who may come in, by public key. Raises ``ConfigError``."""
    why = "who may write it decides who comes in: chmod 600"
    text = _read(path, ALLOWED_BYTES_MAX, 0o022, why)
    found: dict[str, Listed] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split()
        if (
            len(words) != 3
            or words[0] not in FOLDERS
            or not _NAME.fullmatch(words[1])
            or not is_key(words[2])
        ):
            raise ConfigError(
                f"{path}, line {number}: write {MEMBER} or {OPERATOR}, a name, and a public key of 64 "
                "hexadecimal digits"
            )
        if words[2] in found:
            raise ConfigError(f"{path}, line {number}: this key is listed already, above")
        found[words[2]] = Listed(words[0], words[1])
    return found


class AllowList:
    """The file ``allowed``, read again when it has changed; a broken one leaves what was known in force."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._look()
        self._entries = read_allowed(path)

    def find(self, public: str) -> Listed | None:
        return self._entries.get(public)

    def refresh(self) -> str:
        seen = self._look()
        if seen == self._seen:
            return ""
        self._seen = seen
        try:
            entries = read_allowed(self._path)
        except ConfigError as error:
            return f"The allow-list could not be read again, the one before stays in force: {error}"
        before, self._entries = self._entries, entries
        changes = [
            f"{len(names)} {verb} ({', '.join(names[:_SHOWN_MAX])})"
            for verb, names in (("added", _beyond(entries, before)), ("revoked", _beyond(before, entries)))
            if names
        ]
        return f"The allow-list was read again: {', '.join(changes) or 'no change'}, {len(entries)} keys"

    def _look(self) -> tuple[int, ...]:
        try:
            at = self._path.stat()
        except OSError as error:
            return (error.errno or 0,)
        return at.st_ino, at.st_size, at.st_mtime_ns, at.st_mode


def _beyond(entries: dict[str, Listed], others: dict[str, Listed]) -> list[str]:
    return sorted({listed.name for public, listed in entries.items() if others.get(public) != listed})


def listed_keys(directory: Path) -> Iterator[tuple[Listed, str]]:
    """All that a directory lists, with their public keys; the lighthouse's own first."""
    yield Listed(LIGHTHOUSE, ""), _read_lighthouse(directory)["public"]
    for public, listed in read_allowed(directory / ALLOWED_FILE).items():
        yield listed, public
