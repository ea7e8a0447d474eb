"""What only the adapter in memory has: a record of what was sent."""

from __future__ import annotations

from procguard.adapters import MockCommunicationAdapter
from procguard.adapters.memory_communication import SENT_KEPT_MAX, Sent


def test_what_was_sent_is_kept_as_it_was_then() -> None:
    with MockCommunicationAdapter() as adapter:
        adapter.register_worker("a")
        step = {"folders": ["x"]}
        assert adapter.send_command("a", "save", step=step) is True
        step["folders"].append("y")
        adapter.send_command("nobody", "save")
        assert list(adapter.sent) == [Sent("a", "save", {"step": {"folders": ["x"]}})]
        for _ in range(SENT_KEPT_MAX + 1):
            adapter.send_command("a", "look")
        assert len(adapter.sent) == SENT_KEPT_MAX


def test_who_was_given_nothing_to_do_does_nothing_well() -> None:
    with MockCommunicationAdapter(host="h", port_base=1, timeout=2) as adapter:
        adapter.register_worker("a")
        adapter.set_command_callback("a", lambda command, arguments: 1 / 0)
        assert adapter.request("a", "look").error == "ZeroDivisionError: division by zero"
        adapter.set_command_callback("a", None)
        assert adapter.request("a", "look").ok
