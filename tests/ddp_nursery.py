"""Starts many trainers of the proactive example for the price of one import of torch.

``python -m tests.ddp_nursery`` imports what they need and forks one for each line of JSON on its standard input:
``{"args": [...], "env": {...}, "log": path}``. On standard output it says ``{"pid": ...}`` of each, and when one has
ended ``{"pid": ..., "code": ...}``. When its standard input ends it kills those that are left.
"""

from __future__ import annotations

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
    os.environ.update(order["env"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    main(order["args"])  # ends with SystemExit
    raise AssertionError("click ends the process")


def run() -> None:
    main = example().main
    say(ready=True)
    children: dict[int, int] = {}
    lines = b""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready in children:
                pid = children.pop(ready)
                poll.unregister(ready)
                os.close(ready)
                say(pid=pid, code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                continue
            piece = os.read(0, 1 << 16)
            if not piece:
                for pid in children.values():
                    os.kill(pid, signal.SIGKILL)
                return
            *orders, lines = (lines + piece).split(b"\n")
            for order in orders:
                pid = start(json.loads(order), main)
                pidfd = os.pidfd_open(pid)
                children[pidfd] = pid
                poll.register(pidfd, select.POLLIN)
                say(pid=pid)


if __name__ == "__main__":
    sys.exit(run())
