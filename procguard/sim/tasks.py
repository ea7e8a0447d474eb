"""Code that blocks, in virtual time: threads of which never two run at once.

The trainer's side (``Replica``, ``Formation``, ``LighthouseClient``) is written with calls that wait, and is
driven here as it is. Each of its threads is a ``Task``: a real thread that holds the baton from one wait to
the next, while the one who gave it (the clock's loop) stands still. So there is no race, no lock is ever
contended, and the order of events is the clock's alone.

A killed process ends where it waits: ``Killed`` goes up its stack, past every ``except Exception``.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from concurrent.futures import Future
from math import inf
from typing import Any

from procguard.sim.clock import VirtualClock

STACK_BYTES = 1 << 18


class Killed(BaseException):
    """The process of this task is dead."""


class _Thread:
    """A thread that runs one task after another, for as long as the program lives."""

    idle: list[_Thread] = []  # noqa: RUF012  # shared on purpose: 150 us to start one, and a schedule needs dozens

    def __init__(self) -> None:
        self.go = _thread.allocate_lock()
        self.go.acquire()
        self.back = _thread.allocate_lock()
        self.back.acquire()
        self.run: Callable[[], None] | None = None
        threading.Thread(target=self._loop, name="simulated", daemon=True).start()

    @classmethod
    def take(cls) -> _Thread:
        if cls.idle:
            return cls.idle.pop()
        before = threading.stack_size(STACK_BYTES)
        try:
            return cls()
        finally:
            threading.stack_size(before)

    def resume(self) -> None:
        """Hand over the baton, and wait until it comes back."""
        self.go.release()
        self.back.acquire()

    def pause(self) -> None:
        """From the thread itself: give the baton back, and wait for it."""
        self.back.release()
        self.go.acquire()

    def _loop(self) -> None:
        while True:
            self.go.acquire()
            assert self.run is not None
            self.run()
            self.run = None
            self.back.release()


class Computer:
    """A process as the scheduler of its machine sees it: running, stopped or dead. Its tasks stop with it."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.running = True
        self.dead = False
        self.tasks: list[Task] = []
        self._held: list[Callable[[], None]] = []

    def do(self, call: Callable[[], None]) -> None:
        """Now if it is running, once it goes on if it is stopped, never if it is dead."""
        if self.running:
            call()
        elif not self.dead:
            self._held.append(call)

    def stop(self) -> None:
        self.running = False

    def go_on(self) -> None:
        if self.dead or self.running:
            return
        self.running = True
        held, self._held = self._held, []
        for call in held:
            self.do(call)

    def die(self) -> None:
        """At once, wherever its tasks wait. Not to be called from one of them."""
        self.dead, self.running = True, False
        self._held.clear()
        for task in tuple(self.tasks):
            task.kill()


class Task:
    """One thread of a process.

    Args:
        run: what it does; what that raises goes to ``failed``.
    """

    current: Task | None = None
    """The one that holds the baton, if one does."""

    def __init__(self, computer: Computer, run: Callable[[], None], failed: Callable[[Exception], None]):
        self._computer = computer
        self._run = run
        self._failed = failed
        self._thread: _Thread | None = None
        self._killed = False
        self._is_woken = False
        computer.tasks.append(self)
        self.wake()

    def wake(self) -> None:
        """Let it look again whether what it waits for has come. From anywhere."""
        if not self._is_woken:
            self._is_woken = True
            self._computer.clock.after(0.0, self._computer.do, self._go)

    def kill(self) -> None:
        self._killed = True
        if self._thread is not None:
            self._go()

    def wait_until(self, ready: Callable[[], bool], until: float = inf) -> bool:
        """From the task itself: return True when it is ready, False when it is not by then."""
        clock = self._computer.clock
        alarm = None
        while not (done := ready()) and clock.now < until:
            if alarm is None and until < inf:
                alarm = clock.at(until, self.wake)
            self._pause()
        clock.cancel(alarm)
        return done

    def sleep(self, seconds: float) -> None:
        """From the task itself."""
        until = self._computer.clock.now + seconds
        self.wait_until(lambda: False, until)

    def _pause(self) -> None:
        if self._killed:
            raise Killed
        assert self._thread is not None and Task.current is self
        Task.current = None
        self._thread.pause()
        Task.current = self
        if self._killed:
            raise Killed

    def _go(self) -> None:
        self._is_woken = False
        if self._killed and self._thread is None:
            return
        if self._thread is None:
            self._thread = _Thread.take()
            self._thread.run = self._body
        assert Task.current is None, "no task runs inside another"
        self._thread.resume()
        Task.current = None
        if self._thread.run is None:
            _Thread.idle.append(self._thread)
            self._thread = None
            self._killed = True
            self._computer.tasks.remove(self)

    def _body(self) -> None:
        Task.current = self
        try:
            self._run()
        except Killed:
            pass
        except Exception as error:  # noqa: BLE001  # whatever it is: the simulation says what that means
            self._failed(error)


class TaskFuture(Future[None]):
    """A future for which a task waits in virtual time."""

    def result(self, timeout: float | None = None) -> None:
        self._wait()
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._wait()
        return super().exception(0)

    def _wait(self) -> None:
        if not self.done():
            task = Task.current
            assert task is not None
            self.add_done_callback(lambda _: task.wake())
            task.wait_until(self.done)


class TaskWorker:
    """The quorum thread: jobs in order, each in virtual time."""

    def __init__(self, computer: Computer) -> None:
        self._computer = computer
        self._jobs: list[tuple[Callable[[], None], Future[None]]] = []
        self._task: Task | None = None
        self._is_idle = True

    def submit(self, job: Callable[[], None]) -> Future[None]:
        future: Future[None] = TaskFuture()
        self._jobs.append((job, future))
        if self._task is None:
            self._task = Task(self._computer, self._run, _never)
        elif self._is_idle:
            self._task.wake()
        return future

    def close(self, timeout_s: float) -> None:
        """Its task ends with its process."""

    def _run(self) -> None:
        assert self._task is not None
        while True:
            self._is_idle = True
            self._task.wait_until(lambda: bool(self._jobs))
            self._is_idle = False
            job, future = self._jobs.pop(0)
            try:
                job()
            except Exception as error:  # noqa: BLE001  # it belongs to the one who waits for the future
                future.set_exception(error)
            else:
                future.set_result(None)


def _never(error: Exception) -> Any:
    raise AssertionError("the quorum thread ended") from error
