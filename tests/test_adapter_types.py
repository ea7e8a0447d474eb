"""``communication.adapter_type``: ours by short names, one's own by its place; what is said of the rest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from procguard.adapter_types import adapter_class, make_adapter
from procguard.adapters import (
    CommunicationAdapter,
    LighthouseAdapter,
    MockCommunicationAdapter,
    ZMQCommunicationAdapter,
)
from procguard.client import Heart
from procguard.errors import ConfigError
from procguard.guard_config import (
    BUILT_IN_ADAPTERS,
    AdapterConfig,
    CommunicationConfig,
    GuardConfig,
    MonitoringConfig,
)
from procguard.worker_config import WorkerConfig
from tests.adapters.test_communication_contract import eventually

MODULE = """
from procguard.adapters import MockCommunicationAdapter, CommunicationAdapter

class Mine(MockCommunicationAdapter):
    def __init__(self, colour="none", **more):
        super().__init__()
        self.colour, self.more = colour, more

class Strict(MockCommunicationAdapter):
    def __init__(self, colour):
        super().__init__()

class Fails(MockCommunicationAdapter):
    def __init__(self):
        raise OSError("no such queue")

class Half(CommunicationAdapter):
    pass

class Other:
    pass
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules of a user's own in the working directory."""
    (tmp_path / "my_adapters.py").write_text(MODULE)
    (tmp_path / "my_broken.py").write_text("1 / 0\n")
    (tmp_path / "my_needy.py").write_text("import no_such_library\n")
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("my_adapters", "my_broken", "my_needy"):
        sys.modules.pop(name, None)


def make(communication: CommunicationConfig, **more: Any) -> CommunicationAdapter:
    return make_adapter(GuardConfig(communication=communication, **more))


def settings(adapter_type: str, **adapter_config: Any) -> CommunicationConfig:
    return CommunicationConfig(adapter_type=adapter_type, adapter_config=AdapterConfig(**adapter_config))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mock", MockCommunicationAdapter), ("zmq", ZMQCommunicationAdapter), ("lighthouse", LighthouseAdapter)],
)
def test_ours(name: str, kind: type) -> None:
    assert name in BUILT_IN_ADAPTERS
    assert type(make(settings(name))) is kind
    assert type(make(settings(name, host="::1", port_base=4, timeout=5))) is kind


def test_workers_are_told_how_often_to_beat() -> None:
    adapter = make(settings("zmq", port_base=0), monitoring=MonitoringConfig(interval=0.5))
    with adapter, closing(Heart(guard=adapter.environment("a")["PROCGUARD_GUARD"], worker_id="a")) as heart:
        adapter.register_worker("a")
        assert eventually(lambda: heart.beat() and heart.connected)
        assert heart._pulse.welcome is not None
        assert heart._pulse.welcome.settings.heartbeat_interval_s == 0.5
        assert heart._pulse.welcome.settings.heartbeat_timeout_s == 10.0


def test_a_worker_is_the_member_that_its_env_says() -> None:
    workers = tuple(
        WorkerConfig(worker_id=worker_id, command=("x",), env=env)
        for worker_id, env in [
            ("a", {}),
            ("b", {"REPLICA_ID": "group-1"}),
            ("c", {"REPLICA_ID": "group-1", "PROCGUARD_REPLICA_ID": "group-2"}),
        ]
    )
    adapter = make(settings("lighthouse", job_id="j"), workers=workers)
    replica_ids = [adapter.environment(worker_id)["REPLICA_ID"] for worker_id in ("a", "b", "c")]
    assert replica_ids == ["a", "group-1", "group-2"]
    assert adapter.environment("a")["PROCGUARD_JOB_ID"] == "j"


def test_ones_own_gets_exactly_what_stands_in_the_file(mine: None) -> None:
    made = make(settings("my_adapters:Mine", colour="red", host="h"))
    assert (made.colour, made.more) == ("red", {"host": "h"})  # type: ignore[attr-defined]
    assert "" in sys.path or str(Path.cwd()) not in sys.path


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (
            "no_such_module:A",
            "there is no module 'no_such_module' in .* or where Python looks; install it, or",
        ),
        ("my_needy:A", "there is no module 'no_such_library'"),
        ("my_broken:A", "importing it failed: ZeroDivisionError"),
        ("my_adapters:Nobody", "the module my_adapters has no Nobody; correct the name"),
        ("my_adapters:Other", "is no CommunicationAdapter; derive it from procguard.adapters"),
        ("my_adapters:MODULE", "has no MODULE"),
        ("my_adapters:Half", "lacks close, connected_workers, initialize"),
        ("my_adapters:Strict", "cannot be made with .*adapter_config: missing a required .*'colour'"),
        ("my_adapters:Fails", "could not be made: OSError: no such queue; correct"),
    ],
)
def test_one_that_will_not_do(mine: None, place: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"communication\.adapter_type = '{place}'.*{said}"):
        make(settings(place))


def test_a_key_that_it_does_not_take_is_found_without_making_it(mine: None) -> None:
    with pytest.raises(ConfigError, match="got an unexpected keyword argument 'size'"):
        adapter_class(settings("my_adapters:Fails", size=3))
    assert adapter_class(settings("my_adapters:Fails")).__name__ == "Fails"
