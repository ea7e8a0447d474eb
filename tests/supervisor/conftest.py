"""Real processes in tests: a manager of its own for each, and nothing of it left afterwards."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard.supervisor.manager import ProcessManager
from tests.supervisor.processes import MARK, Heard, carriers_of, kill

GRACE_S = 2.0
"""For a keeper on its way home."""


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All that a test starts inherits a mark, by which it is found when the test is over."""
    mark = secrets.token_hex(8)
    monkeypatch.setenv(MARK, mark)
    yield
    deadline = time.monotonic() + GRACE_S
    while (left := carriers_of(mark)) and time.monotonic() < deadline:
        time.sleep(0.005)
    for pid in left:
        kill(pid)
    assert not left, "the test has left processes behind"


@pytest.fixture
def manager(tmp_path: Path, nothing_left: None) -> Iterator[ProcessManager]:
    with ProcessManager(tmp_path / "state") as running:
        yield running


@pytest.fixture
def heard(manager: ProcessManager) -> Heard:
    """What happens to the manager's workers."""
    return Heard(manager)
