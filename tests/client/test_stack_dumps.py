"""The one line by which a worker lets its guard see where it hangs."""

from __future__ import annotations

from pathlib import Path

from procguard.client.stack_dumps import STACK_SIGNAL, write_stacks_when_asked
from procguard.supervisor.notify_socket import Datagram, NotifySocket
from procguard.supervisor.probes import catches
from tests.supervisor.programs import process, until

ONE_LINE = (
    "import sys; from procguard.client.stack_dumps import write_stacks_when_asked; "
    "print(write_stacks_when_asked(), flush=True); sys.stdin.read()"
)
REPOSITORY = str(Path(__file__).parent.parent.parent)


def test_the_guard_is_told_and_the_signal_is_caught(tmp_path: Path) -> None:
    notify = NotifySocket(tmp_path / "notify.sock")
    environment = {"NOTIFY_SOCKET": str(notify.path), "PYTHONPATH": REPOSITORY}
    with process(ONE_LINE, env=environment, output=tmp_path / "log") as worker:
        until(lambda: (tmp_path / "log").read_text() == "True\n")
        (told,) = notify.receive()
        assert (told.pid, told.stack_signal) == (worker.pid, STACK_SIGNAL)
        assert isinstance(told, Datagram)
        assert catches(worker.pid, STACK_SIGNAL)
    notify.close()


def test_a_guard_that_is_away_hurts_nobody(tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "gone.sock"), "PYTHONPATH": REPOSITORY}
    with process(ONE_LINE, env=environment, output=tmp_path / "log"):
        until(lambda: (tmp_path / "log").read_text() == "False\n")


def test_without_a_guard_nothing_happens() -> None:
    assert not write_stacks_when_asked()
