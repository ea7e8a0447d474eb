"""Keys of CURVE sockets: who proves what to whom. http://rfc.zeromq.org/spec/26 (CurveZMQ), /27 (ZAP).

The lighthouse has a key pair, and so has each member and each operator. A member knows the lighthouse's
public key beforehand, so nobody can pose as it; the lighthouse lets in only public keys of its allow-list,
so nobody can pose as a member. All that is said is encrypted on the way.

Keys are 32 bytes, in files and in memory as 64 hexadecimal digits. Secrets are in no ``repr``. Reading files
is ``zmq_key_files``'s affair: a listener gets its key through an inherited pipe and needs no path.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import zmq

from procguard.adapters.zmq_sockets import Options
from procguard.errors import ConfigError

VARIABLE = "PROCGUARD_KEYS"
KEY_DIGITS = 64
FINGERPRINT_DIGITS = 16
MEMBER, OPERATOR, LIGHTHOUSE = "member", "operator", "lighthouse"
MEMBER_WORDS = ("role", "name", "public", "secret", "lighthouse")
"""Of the key file of a member or an operator."""


class Listed(NamedTuple):
    """A line of the allow-list."""

    role: str
    name: str


class Allowed(Protocol):
    """An allow-list."""

    def find(self, public: str) -> Listed | None:
        """Whose key this is; None: nobody's who may come in."""
        ...

    def refresh(self) -> str:
        """Look whether the list has changed, and if so say in words what became of it."""
        ...


class MemberKeys:
    """What a member or an operator proves itself with.

    Args:
        origin: the file it was read from, as errors name it.
        server: the public key of the one it talks to.
    """

    __slots__ = ("_secret", "name", "origin", "public", "role", "server")

    def __init__(self, origin: str, listed: Listed, public: str, secret: str, server: str) -> None:
        self.origin = origin
        self.role, self.name = listed
        self.public = public
        self.server = server
        self._secret = secret

    def __repr__(self) -> str:
        return f"MemberKeys({self.role} {self.name}, {fingerprint(self.public)}, {self.origin})"

    def client_options(self) -> Options:
        """For a socket that connects."""
        return {
            zmq.CURVE_SERVERKEY: bytes.fromhex(self.server),
            zmq.CURVE_PUBLICKEY: bytes.fromhex(self.public),
            zmq.CURVE_SECRETKEY: bytes.fromhex(self._secret),
        }

    def within_group(self) -> MemberKeys:
        """For the ranks of one replica group, which all hold this key: rank 0 serves under it."""
        listed = Listed(self.role, self.name)
        return MemberKeys(self.origin, listed, self.public, self._secret, self.public)

    def as_server(self) -> ServerKeys:
        """For rank 0's place: only who holds this very key comes in."""
        own = OneKey(self.public, Listed(self.role, self.name))
        return ServerKeys(self.origin, self.public, self._secret, own)

    def to_text(self) -> str:
        """As a file, and as a listener inherits it. Secret."""
        return (
            f"# ProcGuard: the secret key of {self.role} {self.name}. Whoever reads it can pose as it.\n"
            f"role {self.role}\nname {self.name}\npublic {self.public}\nsecret {self._secret}\n"
            f"lighthouse {self.server}\n"
        )

    @classmethod
    def from_text(cls, text: str, origin: str) -> MemberKeys:
        """Raises ``ConfigError``, which names ``origin`` and never shows what stands in it."""
        words = read_words(text, origin, MEMBER_WORDS)
        if words["role"] not in (MEMBER, OPERATOR):
            raise ConfigError(
                f"{origin}: the key of a {LIGHTHOUSE}, but a member's or an operator's is wanted"
            )
        listed = Listed(words["role"], words["name"])
        return cls(origin, listed, words["public"], words["secret"], words["lighthouse"])


class ServerKeys:
    """What a lighthouse, or rank 0 of a group, proves itself with, and who may come to it."""

    __slots__ = ("_secret", "allowed", "origin", "public")

    def __init__(self, origin: str, public: str, secret: str, allowed: Allowed) -> None:
        self.origin = origin
        self.public = public
        self.allowed = allowed
        self._secret = secret

    def __repr__(self) -> str:
        return f"ServerKeys({fingerprint(self.public)}, {self.origin})"

    def server_options(self) -> Options:
        """For a socket that binds. Without anybody who answers for the list nobody comes in."""
        return {
            zmq.CURVE_SERVER: 1,
            zmq.CURVE_SECRETKEY: bytes.fromhex(self._secret),
            zmq.ZAP_ENFORCE_DOMAIN: 1,
        }


class OneKey:
    """An allow-list of one."""

    def __init__(self, public: str, listed: Listed) -> None:
        self._public = public
        self._listed = listed

    def find(self, public: str) -> Listed | None:
        return self._listed if public == self._public else None

    def refresh(self) -> str:
        return ""


def require_curve() -> None:
    """Raises ``ConfigError`` where libzmq was built without CURVE."""
    if not zmq.has("curve"):
        raise ConfigError(
            "keys are asked for, but this machine's libzmq was built without CURVE: install pyzmq's "
            "wheel, which has it, or a libzmq built with libsodium"
        )


def fingerprint(public: str) -> str:
    """What people compare instead of a key."""
    return public[:FINGERPRINT_DIGITS]


def read_words(text: str, origin: str, wanted: tuple[str, ...]) -> dict[str, str]:
    """The lines ``word value`` of a key file. Raises ``ConfigError`` that shows no value."""
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    words = {line[0]: line[1] for line in lines if len(line) == 2}
    missing = [word for word in wanted if word not in words]
    if missing or len(lines) != len(wanted):
        raise ConfigError(
            f"{origin}: not a key file of ProcGuard: it should hold a line for each of {', '.join(wanted)}"
            + (f", and has none for {', '.join(missing)}" if missing else "")
        )
    for word in wanted:
        if word not in ("role", "name") and not is_key(words[word]):
            raise ConfigError(f"{origin}: its line {word!r} holds no key ({KEY_DIGITS} hexadecimal digits)")
    return words


def is_key(text: str) -> bool:
    return len(text) == KEY_DIGITS and not text.strip("0123456789abcdef")
