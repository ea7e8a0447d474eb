"""Starts many trainers of the proactive example for the price of one import of torch.

``python -m tests.ddp_nursery`` imports what they need and forks one for each line of JSON on its standard
input: ``{"args": [...], "env": {...}, "log": path}``. On standard output it says ``{"pid": ...}`` of each,
and when one has ended ``{"pid": ..., "code": ...}``. When its standard input ends it kills what is left.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import importlib.util
import json
import os
import select
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

EXAMPLE = Path(__file__).parent.parent / "examples" / "ddp_proactive" / "train_ddp_proactive.py"


STUCK_S = 120
"""After so long a trainer says in its log where its threads are."""


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_ddp_proactive", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def say(**facts: Any) -> None:
    os.write(1, json.dumps(facts).encode() + b"\n")


def start(order: dict[str, Any], main: Any) -> int:
    """Fork a trainer; its end is an interpreter's like any other's."""
    pid = os.fork()
    if pid:
        return pid
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(order["env"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    faulthandler.dump_traceback_later(STUCK_S, file=2)
    main(order["args"])  # ends with SystemExit
    raise AssertionError("click ends the process")


def reap(children: set[int]) -> None:
    """Say of each child that has ended."""
    for pid in tuple(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            children.remove(pid)
            say(pid=pid, code=os.waitstatus_to_exitcode(status))


def run() -> None:
    module = example()
    module.load_digits = functools.cache(module.load_digits)
    module.load_digits(return_X_y=True)
    gc.freeze()  # or each child's first collection would copy all that they share
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    children: set[int] = set()
    lines = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 1 << 16)
            reap(children)
        if 0 in ready:
            piece = os.read(0, 1 << 16)
            if not piece:
                break
            *orders, lines = (lines + piece).split(b"\n")
            for order in orders:
                pid = start(json.loads(order), module.main)
                children.add(pid)
                say(pid=pid)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    sys.exit(run())
