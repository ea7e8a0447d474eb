"""The journal of the example, read back."""

from __future__ import annotations

import pytest

from procguard.demo.journal import Ended, Entry, Stepped, Told, parse


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        (
            '{"at": 1.5, "event": "step", "step": 3, "committed": true, "quorum": 7}',
            Stepped("0", 1.5, 3, True, 7),
        ),
        (
            '{"at": 2, "event": "told", "replica_id": "1", "cause": "killed by SIGKILL", "left": false}',
            Told("0", 2, "1", False),
        ),
        (
            '{"at": 9.0, "event": "end", "step": 40, "accuracy": 0.9, "digest": "ab"}',
            Ended("0", 9.0, 40, 0.9, "ab"),
        ),
    ],
)
def test_each_event(line: str, entry: Entry) -> None:
    assert parse("0", line) == entry
