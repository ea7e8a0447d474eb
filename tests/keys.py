"""A key directory as `procguard keys new` makes it, for tests that need one."""

from __future__ import annotations

from pathlib import Path

from procguard.adapters.zmq_key_files import FOLDERS, SUFFIX, make_directory, read_member, read_server
from procguard.adapters.zmq_keys import MEMBER, OPERATOR, MemberKeys, ServerKeys


class Keys:
    """Of members a and b, and of the operator op."""

    def __init__(self, directory: Path, members: tuple[str, ...] = ("a", "b")) -> None:
        self.directory = directory
        make_directory(directory, members, ["op"])

    def path(self, name: str, role: str = MEMBER) -> Path:
        return self.directory / FOLDERS[role] / f"{name}{SUFFIX}"

    @property
    def server(self) -> ServerKeys:
        return read_server(self.directory)

    def member(self, name: str = "a") -> MemberKeys:
        return read_member(self.path(name))

    @property
    def operator(self) -> MemberKeys:
        return read_member(self.path("op", OPERATOR))

    def secrets(self) -> set[str]:
        """Every secret that was ever written here."""
        texts = [path.read_text() for path in self.directory.rglob(f"*{SUFFIX}")]
        lines = [line.split() for text in texts for line in text.splitlines()]
        return {words[1] for words in lines if words[0] == "secret"}
