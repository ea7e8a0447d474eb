"""The list of what happened: numbered, bounded, read from any point on."""

from __future__ import annotations

from procguard.supervisor.chronicle import EVENTS_KEPT_MAX, Chronicle


def test_events_are_numbered_and_timed() -> None:
    chronicle = Chronicle(wall_clock=lambda: 1_700_000_000.0)
    chronicle.add("started", "started, pid 7", "w0", at=5.0)
    chronicle.add("gave_up", "w0 failed again")
    assert chronicle.since(None, 10) == [
        {"seq": 1, "at": 5.0, "worker_id": "w0", "kind": "started", "text": "started, pid 7"},
        {
            "seq": 2,
            "at": 1_700_000_000.0,
            "worker_id": None,
            "kind": "gave_up",
            "text": "w0 failed again",
        },
    ]


def test_one_reads_on_from_where_one_was() -> None:
    chronicle = Chronicle()
    for number in range(1, 6):
        chronicle.add("health", f"{number}")
    assert [event["seq"] for event in chronicle.since(None, 2)] == [4, 5]
    assert [event["seq"] for event in chronicle.since(2, 2)] == [3, 4]
    assert chronicle.since(5, 2) == []
    assert chronicle.since(None, 0) == []


def test_only_so_many_are_kept_and_numbers_go_on() -> None:
    chronicle = Chronicle()
    for _ in range(EVENTS_KEPT_MAX + 3):
        chronicle.add("health", "")
    kept = chronicle.since(0, 10 * EVENTS_KEPT_MAX)
    assert len(kept) == EVENTS_KEPT_MAX
    assert [kept[0]["seq"], kept[-1]["seq"]] == [4, EVENTS_KEPT_MAX + 3]
