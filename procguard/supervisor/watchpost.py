"""What there is between the monitor's ``start`` and ``stop``: its descriptors, its socket, those who work
for it."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import tempfile
import threading
from pathlib import Path

from procguard.supervisor.failure_calls import FailureCalls
from procguard.supervisor.notify_socket import NotifySocket, socket_path
from procguard.supervisor.url_checks import UrlChecks

JOIN_S = 5.0


class Watchpost:
    """Wakes for its socket, for the pidfds added to it, and when it is called. Raises ``StateError``."""

    def __init__(self, state_dir: Path | None, calls: FailureCalls, urls: UrlChecks) -> None:
        self.calls, self.urls = calls, urls
        self.ending = False
        self.thread: threading.Thread | None = None
        self._temporary = None if state_dir is not None else Path(tempfile.mkdtemp(prefix="procguard-"))
        self.notify = NotifySocket(socket_path(state_dir or self._temporary or Path()))
        self._waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closing = threading.Lock()
        self._closed = False
        self._epoll = select.epoll()
        self.add(self._waker)
        self.add(self.notify.fileno())

    def add(self, descriptor: int) -> None:
        """Wake for this one too, until it is closed."""
        self._epoll.register(descriptor, select.EPOLLIN)

    def own_fds(self) -> set[int]:
        """Those that are no pidfds."""
        return {self._waker, self.notify.fileno()}

    def wait(self, timeout_s: float) -> set[int]:
        """The descriptors that are ready; ``timeout_s`` -1 for ever."""
        ready = {descriptor for descriptor, _ in self._epoll.poll(timeout_s)}
        if self._waker in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._waker)
        return ready

    def wake(self) -> None:
        """End the wait that is running, or the next one; from any thread."""
        with self._closing:
            if not self._closed:
                os.eventfd_write(self._waker, 1)

    def end(self) -> None:
        """Stop all threads of it; the loop closes what it uses when it is out."""
        self.ending = True
        self.urls.close()
        self.calls.close()
        self.wake()
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(JOIN_S)

    def close(self) -> None:
        """Let go of everything; for the loop, when it is out."""
        with self._closing:
            self._closed = True
            os.close(self._waker)
        self._epoll.close()
        self.notify.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def has_ended(pidfd: int) -> bool:
    """Whether the process of this pidfd has ended; never waits."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))
