"""A trainer for tests, ``python -m tests.trainer``: tiny weights, but a real Manager and process group.

It says what happens as JSON lines on standard output. On standard input it takes lines of JSON, each a text
of Python, which its main thread runs in the middle of the next step: between asking for the quorum and the
collective. So a test can end, fork or stop it there in any way it likes.

Weights are equal exactly when two trainers took the same steps from the same start: the first ones are
random, and each replica has gradients of its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import queue
import resource
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from procguard.adapters.collective import RingProcessGroup
from procguard.client import Manager
from procguard.client.state_stream import SENT_BYTES, Encoded
from procguard.errors import UsageError
from procguard.messages import Notice

STEP_S = 0.02
"""How long a step computes, if nobody tells it what to do."""
COLLECTIVE_TIMEOUT = timedelta(seconds=60)
WEIGHTS_COUNT = 8


class Trainer:
    """What the words of a test find under the name ``trainer``."""

    def __init__(self) -> None:
        self.weights = np.random.default_rng().normal(size=WEIGHTS_COUNT)
        self.heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.manager = Manager(
            pg=RingProcessGroup(COLLECTIVE_TIMEOUT),
            load_state_dict=self.load,
            state_dict=lambda: self.weights,
            min_replica_size=1,
        )
        self.ballast = np.zeros(int(os.environ.get("BALLAST_BYTES", "0")), np.uint8)
        self.manager.register_state_dict_fn("ballast", lambda ballast: None, lambda: self.ballast)
        self.manager.on_failure(told)
        self._share = zlib.crc32(self.manager.replica_id().encode())

    def load(self, weights: Any) -> None:
        self.weights = np.array(weights)
        say("healed")

    def run(self) -> None:
        """Train until told to ``finish``."""
        manager = self.manager
        asked_to_end = False
        while True:
            manager.start_quorum()
            gradients = np.random.default_rng((manager.current_step(), self._share)).normal(
                size=WEIGHTS_COUNT
            )
            word = self.next_word()
            if word == "finish":
                asked_to_end = True
            elif word is not None:
                exec(word, globals(), {"trainer": self, "manager": manager})
            last = np.array([float(asked_to_end)])  # averaged, so all end after the same step
            manager.allreduce([gradients, last]).wait()
            committed = manager.should_commit()
            if committed:
                self.weights -= gradients
            self.report(committed)
            if committed and last.any():
                return

    def next_word(self) -> str | None:
        """What the test wants done in this step."""
        try:
            return self.heard.get(timeout=STEP_S)
        except queue.Empty:
            return None

    def report(self, committed: bool) -> None:
        manager = self.manager
        say(
            "step",
            step=manager.current_step(),
            committed=committed,
            quorum=manager.state_dict()["committed_in"],
            size=manager.num_participants(),
            incarnation=str(manager._membership.incarnation),
            listeners=manager.listening_pids(),
            thread_beats=any(thread.name == "procguard-session" for thread in threading.enumerate()),
            weights=hashlib.sha256(self.weights.tobytes()).hexdigest()[:16],
        )

    def listen(self) -> None:
        """Take the test's words, in a thread."""
        # Not from sys.stdin: a child of multiprocessing closes that, and would wait for this thread's lock.
        with open(os.dup(0)) as words:
            for line in words:
                self.heard.put(json.loads(line))


def say(event: str, **facts: Any) -> None:
    """One write, so that lines of several threads, or of a forked child, never mix."""
    os.write(1, json.dumps({"event": event, **facts}).encode() + b"\n")


def told(notice: Notice) -> None:
    say(
        "told",
        replica_id=notice.replica_id,
        incarnation=str(notice.incarnation),
        cause=str(notice.cause),
        left=notice.left,
    )


def hang() -> None:
    """Stay in this step until the process ends, or a signal comes."""
    say("hanging")
    signal.pause()


def spin(sign: Callable[[], None] = lambda: None) -> None:
    """Compute in this step until SIGUSR1 comes, giving signs of progress."""
    freed: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: freed.append(number))
    say("hanging")
    while not freed:
        sign()


def hold_the_gil() -> None:
    """Let no other thread run until SIGUSR1 comes."""
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    say("hanging")
    ctypes.PyDLL(None).pause()


def hesitate(mark: str) -> None:
    """Of those told so, the first that serves its state stops in the middle until there is ``mark``.go."""
    parts, wait = Encoded.parts, threading.Event().wait

    def hesitating(self: Encoded) -> Iterator[memoryview]:
        sent_bytes = 0
        for part in parts(self):
            yield part
            sent_bytes += len(part)
            if sent_bytes >= SENT_BYTES and is_first(mark):
                say("midway")
                while not Path(f"{mark}.go").exists():
                    wait(0.01)

    Encoded.parts = hesitating  # type: ignore[method-assign]
    say("hesitates")


def is_first(mark: str) -> bool:
    try:
        Path(mark).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def use_inherited(manager: Manager) -> None:
    """What a forked child may try: each use is a clear error, and ``shutdown`` is none."""
    for use in (manager.start_quorum, manager.should_commit, lambda: manager.allreduce(np.zeros(1))):
        try:
            use()
        except UsageError as error:
            say("inert", text=str(error))
    manager.shutdown()


def data_loader(manager: Manager, *, lives_on: bool) -> None:
    """A forked child with all that it inherited."""
    use_inherited(manager)
    say("child", pid=os.getpid())
    if lives_on:
        signal.pause()


def fork(manager: Manager, *, lives_on: bool) -> int:
    """``os.fork``; the pid. The child ends by leaving the interpreter, as a careless one does."""
    pid = os.fork()
    if pid == 0:
        data_loader(manager, lives_on=lives_on)
        sys.exit(0)
    return pid


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if os.environ.get("OWN_JOB") == "1":
        os.setpgid(0, 0)  # as a shell does with each command; its Ctrl-C and Ctrl-Z go to that group
    trainer = Trainer()
    say("joined", replica_id=trainer.manager.replica_id(), pid=os.getpid())
    threading.Thread(target=trainer.listen, daemon=True).start()
    trainer.run()
    trainer.manager.shutdown()
    say("finished", weights=trainer.weights.tolist())


if __name__ == "__main__":
    main()
