"""Forks torchft trainers: ``python -m tests.torchft_nursery``, which imports torch once for all of them.

A line of JSON on standard input is an order: the environment of a trainer, and the files for what it says. A
line of JSON on standard output is a birth or an end. It ends with its input, and kills whoever is left.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import torch._dynamo  # which every optimizer imports, for more than a second
import torchft

from procguard.adapters.torchft.__main__ import main as run_on_procguard

SCRIPT = os.path.join(os.path.dirname(__file__), "torchft_train.py")
assert torch and torchft
children: set[int] = set()


def reap(number: int, frame: object) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        children.discard(pid)
        # Not by print: this may run in the middle of one.
        os.write(1, (json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}) + "\n").encode())


def be_a_trainer(order: dict[str, object]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    os.environ.update(order["environ"])  # type: ignore[call-overload]
    for path, fd in ((os.devnull, 0), (order["out"], 1), (order["err"], 2)):
        opened = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, fd)
        os.close(opened)
    run_on_procguard([SCRIPT])


def main() -> None:
    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        order = json.loads(line)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # until the child is on the list
        pid = os.fork()
        if pid == 0:
            be_a_trainer(order)
            return
        children.add(pid)
        os.write(1, (json.dumps({"born": pid}) + "\n").encode())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    for pid in tuple(children):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
