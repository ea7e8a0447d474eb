"""A real ``procguard-lighthouse``, started and stopped as a user does it."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from queue import Queue
from typing import Any

from procguard.adapters.zmq import ZmqMemberTransport
from procguard.adapters.zmq_keys import MemberKeys
from procguard.codec import decode, encode
from procguard.messages import Message

REPOSITORY = Path(__file__).parent.parent.parent
DEADLINE_S = 60.0
"""For what takes a fraction of a second on an idle machine."""


class Running:
    """A command whose stderr is read line by line as it comes, for as long as it runs.

    Use as a context manager: at the end it is killed if it still runs.
    """

    def __init__(self, *command: str, environ: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=REPOSITORY,
            env={**os.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors: Queue[str | None] = Queue()
        """Lines as they come; None at the end."""
        self.output: Queue[str | None] = Queue()
        self.seen: list[str] = []
        streams = [(self._process.stderr, self.errors), (self._process.stdout, self.output)]
        self._readers = [threading.Thread(target=self._read, args=pair) for pair in streams]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: Any, lines: Queue[str | None]) -> None:
        for line in stream:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    def error_line(self, part: str) -> str:
        """The next line on stderr that holds ``part``."""
        while True:
            line = self.errors.get(timeout=DEADLINE_S)
            assert line is not None, f"it ended without saying {part!r}, but: {self.seen}"
            self.seen.append(line)
            if part in line:
                return line

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self, number: signal.Signals) -> int:
        """Send a signal; the exit code that follows."""
        self.send(number)
        return self.exit_code()

    def exit_code(self) -> int:
        return self._process.wait(DEADLINE_S)

    def rest_of_errors(self) -> str:
        """All that it still says on stderr until it ends."""
        self.exit_code()
        return "\n".join(iter(self.errors.get, None))

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join(DEADLINE_S)
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()


class Lighthouse(Running):
    """``procguard-lighthouse``, logging JSON, on a port of the kernel's choice if none is given."""

    def __init__(self, *flags: str, environ: Mapping[str, str] | None = None) -> None:
        assert "--port" in "".join(flags), "say --port=0 or another: the default one may be in use here"
        super().__init__("procguard.lighthouse.cli", "--log-format=json", *flags, environ=environ)

    def __enter__(self) -> Lighthouse:
        return self

    def listening(self) -> Lighthouse:
        """Wait until it says where it listens."""
        line = json.loads(self.error_line("Lighthouse listening on"))
        self.address: str = line["address"]
        self.port: int = line["port"]
        self.notice_port: int = line["notice_port"]
        self.epoch: int = line["epoch"]
        return self

    keys: MemberKeys | None = None
    """To ask with, where it asks for keys."""

    def answer(self, message: Message) -> Message:
        """What it answers to one message on a connection of its own."""
        with closing(ZmqMemberTransport("127.0.0.1", self.port, self.keys)) as transport:
            transport.send(encode(message))
            transport.wait(DEADLINE_S)
            (frame,) = transport.receive(1)
            return decode(frame)


def free_ports() -> int:
    """A port that is free, and so is the next one; below those that the kernel hands out itself."""
    for port in random.sample(range(20_000, 32_000), 100):
        try:
            for each in (port, port + 1):
                with socket.create_server(("127.0.0.1", each)):
                    pass
        except OSError:
            continue
        return port
    raise AssertionError("no two ports in a row are free")
