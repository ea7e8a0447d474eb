"""One line for a worker that a guard supervises: let it see where this process hangs, should it hang.

::

    from procguard.client.stack_dumps import write_stacks_when_asked

    write_stacks_when_asked()

From then on one real-time signal makes ``faulthandler`` write the stacks of all threads to stderr, also
while another thread holds the interpreter. The guard is told of it over ``NOTIFY_SOCKET``, and sends the
signal only to processes that told it. Standard library only; without a guard nothing happens.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import sys

STACK_SIGNAL = int(signal.SIGRTMIN) + 9
"""One that nothing else is known to use; SIGUSR1 means something else to too many programs."""


def write_stacks_when_asked(signal_number: int = STACK_SIGNAL) -> bool:
    """Write all threads' stacks to stderr upon this signal; returns whether a guard was told so."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    faulthandler.register(signal_number, file=sys.__stderr__ or 2, all_threads=True, chain=False)
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),  # the guard is away: there is nobody who would send the signal
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify,
    ):
        notify.settimeout(1.0)
        notify.sendto(f"X_PROCGUARD_STACK_SIGNAL={signal_number}".encode(), address)
        return True
    return False
