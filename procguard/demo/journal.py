"""What a replica's journal says: the JSON lines of ``examples/train_digits.py``, as typed entries. Pure.

All times are seconds of the machine's monotonic clock, which all processes of one machine share.
"""

from __future__ import annotations

import json
from typing import NamedTuple


class Stepped(NamedTuple):
    """A process has been through a step."""

    name: str
    at: float
    step: int
    """Steps committed by then."""
    committed: bool
    """False: this step has to be repeated."""
    quorum: int
    """The packed id of the quorum in which ``step`` was committed."""


class Told(NamedTuple):
    """A process has heard that a replica is gone."""

    name: str
    at: float
    about: str
    left: bool
    """It left in good order."""


class Ended(NamedTuple):
    """A process has done its last step."""

    name: str
    at: float
    step: int
    accuracy: float
    digest: str


Entry = Stepped | Told | Ended


def parse(name: str, line: str) -> Entry:
    """One line of the journal of that process."""
    facts = json.loads(line)
    event, at = facts["event"], facts["at"]
    if event == "step":
        return Stepped(name, at, facts["step"], facts["committed"], facts["quorum"])
    if event == "told":
        return Told(name, at, facts["replica_id"], facts["left"])
    assert event == "end", f"an entry that nobody writes: {line}"
    return Ended(name, at, facts["step"], facts["accuracy"], facts["digest"])
