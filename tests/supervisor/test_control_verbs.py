"""What a verb may be told, which method it becomes, and what is said of names that are not there."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procguard.errors import UsageError
from procguard.supervisor.control_verbs import CHANGING, VERBS, perform, signal_named
from procguard.supervisor.control_words import Request, read_answer, read_request, result_line
from tests.supervisor.fake_guard import FakeCommands, worker


def told(verb: str, **args: Any) -> tuple[Any, list[tuple[Any, ...]]]:
    commands = FakeCommands()
    return perform(commands, Request(verb, args)), commands.told


def test_each_verb_reaches_the_guard() -> None:
    assert told("start", ids=["w1"]) == ({"w1": True}, [("start", ["w1"])])
    assert told("stop", ids=["w1", "w0"], force=True)[1] == [("stop", ["w1", "w0"], True)]
    assert told("stop", ids=["w1"])[1] == [("stop", ["w1"], False)]
    assert told("restart", ids=["w1"])[1] == [("restart", ["w1"])]
    assert told("kill", ids=["w1"])[1] == [("kill", ["w1"], signal.SIGKILL)]
    assert told("kill", ids=["w1"], signal="usr1")[1] == [("kill", ["w1"], signal.SIGUSR1)]
    assert told("tasks")[0]["queue"] == ["t3"]
    assert [w["worker_id"] for w in told("status")[0]["workers"]] == ["w0", "w1"]


def test_null_means_all_and_a_name_twice_means_once() -> None:
    assert told("stop", ids=None)[0] == {"w0": True, "w1": True}
    assert told("stop", ids=["w1", "w1"])[1] == [("stop", ["w1"], False)]


def test_events_are_counted() -> None:
    commands = FakeCommands()
    commands.happened = [{"seq": seq} for seq in range(1, 8)]
    assert perform(commands, Request("events", {"count": 2})) == [{"seq": 6}, {"seq": 7}]
    assert perform(commands, Request("events", {"after_seq": 3, "count": 2})) == [{"seq": 4}, {"seq": 5}]
    assert len(perform(commands, Request("events", {"count": 1 << 80}))) == 7


@pytest.mark.parametrize(
    ("verb", "args", "said"),
    [
        ("reboot", {}, "does not know 'reboot'; it knows status, log_paths"),
        ("status", {"all": True}, "status: there is no argument 'all'"),
        ("stop", {}, "stop: ids must be a list of worker ids, or null for all"),
        ("stop", {"ids": []}, "stop: ids must be a list"),
        ("stop", {"ids": "w0"}, "stop: ids must be a list"),
        ("stop", {"ids": ["w0", 1]}, "stop: ids must be a list"),
        ("stop", {"ids": ["w0"], "force": 1}, "stop: force must be true or false"),
        ("start", {"ids": ["w0"], "force": True}, "start: there is no argument 'force'"),
        ("kill", {"ids": ["w0"], "signal": "SIGWRONG"}, "'SIGWRONG' is no signal"),
        ("kill", {"ids": ["w0"], "signal": 9}, "kill: signal must be a text"),
        ("log_paths", {}, "log_paths: id must be a text"),
        ("events", {"count": -1}, "events: count must be a whole number"),
        ("events", {"count": True}, "events: count must be a whole number"),
        ("events", {"after_seq": 1.5}, "events: after_seq must be a whole number"),
    ],
)
def test_what_cannot_be_told(verb: str, args: dict[str, Any], said: str) -> None:
    commands = FakeCommands()
    with pytest.raises(UsageError) as error:
        perform(commands, Request(verb, args))
    assert said in str(error.value)
    assert commands.told == []


@pytest.mark.parametrize("verb", CHANGING)
def test_an_unknown_worker_stops_all_of_it_and_the_nearest_are_named(verb: str) -> None:
    commands = FakeCommands(worker("trainer-0"), worker("trainer-1"), worker("loader"))
    with pytest.raises(UsageError, match="no worker 'trainer_1'; did you mean trainer-1 or trainer-0"):
        perform(commands, Request(verb, {"ids": ["loader", "trainer_1"]}))
    assert commands.told == []


def test_where_nothing_is_near_all_are_named() -> None:
    with pytest.raises(UsageError, match="no worker 'zzz'; there is w0, w1"):
        told("stop", ids=["zzz"])
    commands = FakeCommands(*(worker(f"w{i}") for i in range(50)))
    with pytest.raises(UsageError, match=r"w19 and 30 more"):
        perform(commands, Request("stop", {"ids": ["zzz"]}))
    commands.workers = []
    with pytest.raises(UsageError, match="this guard has none"):
        perform(commands, Request("stop", {"ids": ["zzz"]}))
    assert perform(commands, Request("stop", {"ids": None})) == {}


@pytest.mark.parametrize("text", ["KILL", "SIGKILL", "kill", " sigkill ", "9"])
def test_a_signal_in_any_spelling(text: str) -> None:
    assert signal_named(text) is signal.SIGKILL


def test_every_verb_is_known() -> None:
    for verb in VERBS:
        with pytest.raises(UsageError, match=r"there is no argument 'what'|must be"):
            told(verb, what=1)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["w0", "SIGTERM", 3]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(
    st.sampled_from(["ids", "id", "force", "signal", "count", "after_seq"]) | st.text(max_size=3),
    st.lists(st.sampled_from(["w0", "w1", "x"])) | ANYTHING,
    max_size=3,
)
REQUESTS = st.fixed_dictionaries(
    {"verb": st.sampled_from(VERBS) | ANYTHING}, optional={"args": ARGUMENTS | ANYTHING}
)


@given(st.binary(max_size=60) | (REQUESTS | ANYTHING).map(lambda request: json.dumps(request).encode()))
def test_whatever_is_said_is_done_or_refused(line: bytes) -> None:
    try:
        result = perform(FakeCommands(), read_request(line))
    except UsageError as error:
        assert len(str(error)) < 5000
    else:
        assert read_answer(result_line(result)) is not None
