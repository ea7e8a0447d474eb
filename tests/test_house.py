"""The house stays as drawn: who imports whom, what stays pure, what an import loads, how things are called.

``ROOMS`` is the drawing. A new module is one line in it; the layers are explained where they are defined.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Container, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

import procguard

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "procguard"


class Anything:
    def __contains__(self, name: str) -> bool:
        return True


@dataclass(frozen=True)
class Layer:
    """What the modules of a layer may import."""

    own_folder: tuple[str, ...] = ()
    """Layers that may be reached in the same folder; from the front of the house, in every folder."""
    anywhere: tuple[str, ...] = ("noun",)
    """Layers that may be reached wherever they stand."""
    third_party: Container[str] = ()
    pure: bool = False
    """Without a clock, a socket, a file, a thread or randomness: those come in as arguments."""


ANY = Anything()
LAYERS = {
    "kernel": Layer(),  # what the operating system says, for all who ask it
    "noun": Layer(third_party=("msgpack",)),  # the words all others speak
    "pure": Layer(own_folder=("pure",), pure=True),  # decisions
    "model": Layer(own_folder=("model",), third_party=("pydantic", "pydantic_core")),  # validated settings
    "port": Layer(),  # the shape of an adapter: a shell holds one without knowing which
    "shell": Layer(  # loops
        own_folder=("pure", "shell"), anywhere=("noun", "kernel", "model", "port"), third_party=ANY
    ),
    "adapter": Layer(anywhere=("noun", "kernel", "port"), third_party=ANY),  # the outside world
    "door": Layer(  # where people come in and the rest is wired
        own_folder=("pure", "shell", "door"),
        anywhere=("noun", "kernel", "model", "port", "adapter", "door"),
        third_party=ANY,
    ),
    "bridge": Layer(  # another library's classes, made of our rooms: like a door, among the adapters
        own_folder=("pure", "bridge"),
        anywhere=("noun", "kernel", "model", "port", "pure", "shell", "adapter", "door"),
        third_party=ANY,
    ),
    "stage": Layer(  # the simulator: sets lighthouse and client, as they are, before a world of its own
        own_folder=("stage",), anywhere=("noun", "kernel", "port", "pure", "shell"), third_party=("click",)
    ),
}

ROOMS = {
    "__init__": "door",
    "adapter_types": "door",
    "adapters.__init__": "door",
    "adapters.base": "port",
    "adapters.collective": "adapter",
    "adapters.collective_links": "adapter",
    "adapters.collective_rendezvous": "adapter",
    "adapters.collective_ring": "adapter",
    "adapters.collective_worker": "adapter",
    "adapters.communication": "port",
    "adapters.memory": "adapter",
    "adapters.memory_communication": "adapter",
    "adapters.process_group": "port",
    "adapters.scheduling": "adapter",
    "adapters.torch": "door",
    "adapters.torch_backends": "adapter",
    "adapters.torch_ddp": "adapter",
    "adapters.torch_futures": "adapter",
    "adapters.torch_group": "adapter",
    "adapters.torch_optimizer": "adapter",
    "adapters.torch_payload": "adapter",
    "adapters.torch_quorum": "adapter",
    "adapters.torch_sampler": "adapter",
    "adapters.torch_store": "adapter",
    "adapters.torch_watch": "adapter",
    "adapters.torchft.__init__": "bridge",
    "adapters.torchft.__main__": "bridge",
    "adapters.torchft.addresses": "pure",
    "adapters.torchft.breaker": "bridge",
    "adapters.torchft.exceptions": "pure",
    "adapters.torchft.installation": "bridge",
    "adapters.torchft.lighthouse_client": "bridge",
    "adapters.torchft.lighthouse_server": "bridge",
    "adapters.torchft.manager_client": "bridge",
    "adapters.torchft.manager_server": "bridge",
    "adapters.torchft.manager_words": "pure",
    "adapters.torchft.plan": "pure",
    "adapters.torchft.results": "pure",
    "adapters.torchft.seat": "bridge",
    "adapters.torchft.wiring": "bridge",
    "adapters.zmq": "adapter",
    "adapters.zmq_communication": "adapter",
    "adapters.zmq_doorkeeper": "adapter",
    "adapters.zmq_handshakes": "adapter",
    "adapters.zmq_key_files": "adapter",
    "adapters.zmq_keys": "adapter",
    "adapters.zmq_lighthouse": "adapter",
    "adapters.zmq_ranks": "adapter",
    "adapters.zmq_roll": "adapter",
    "adapters.zmq_sockets": "adapter",
    "check_config": "door",
    "client.__init__": "door",
    "client.abort": "shell",
    "client.checkpoint": "shell",
    "client.checkpoint_fetch": "shell",
    "client.checkpoint_source": "shell",
    "client.companion": "shell",
    "client.fence": "pure",
    "client.formation": "shell",
    "client.group": "pure",
    "client.group_client": "shell",
    "client.group_host": "shell",
    "client.group_words": "pure",
    "client.heart": "door",
    "client.hosts": "shell",
    "client.lighthouse_client": "shell",
    "client.link": "shell",
    "client.link_words": "pure",
    "client.listener": "door",
    "client.loop": "shell",
    "client.manager": "door",
    "client.membership": "shell",
    "client.options": "door",
    "client.pages_ahead": "shell",
    "client.phases": "shell",
    "client.proc_stat": "shell",
    "client.process_group": "pure",
    "client.process_hooks": "shell",
    "client.pulse": "pure",
    "client.recovery_plan": "pure",
    "client.replica": "shell",
    "client.requests": "pure",
    "client.robust_mutex": "shell",
    "client.session": "pure",
    "client.stack_dumps": "shell",
    "client.state_stream": "shell",
    "client.timeouts": "pure",
    "client.train_state": "shell",
    "client.witness": "shell",
    "client.work": "pure",
    "client.worker": "shell",
    "codec": "noun",
    "codec_glances": "noun",
    "config": "door",
    "core": "door",
    "demo.__init__": "door",
    "demo.chronicle": "pure",
    "demo.command": "door",
    "demo.faults": "pure",
    "demo.journal": "pure",
    "demo.keeper": "shell",
    "demo.processes": "shell",
    "demo.report": "pure",
    "demo.run": "shell",
    "demo.story": "pure",
    "demo.train_digits": "door",
    "demo.view": "door",
    "env": "door",
    "errors": "noun",
    "expansion": "model",
    "guard_commands": "door",
    "guard_config": "model",
    "guard_finding": "door",
    "guard_logs": "shell",
    "guard_messages": "noun",
    "guard_view": "door",
    "guard_watch": "door",
    "kernel": "kernel",
    "keys": "door",
    "kill": "door",
    "lighthouse.__init__": "door",
    "lighthouse.admission": "pure",
    "lighthouse.cli": "door",
    "lighthouse.core": "pure",
    "lighthouse.deadlines": "pure",
    "lighthouse.epoch_file": "shell",
    "lighthouse.events": "pure",
    "lighthouse.job": "pure",
    "lighthouse.members": "pure",
    "lighthouse.notices": "pure",
    "lighthouse.quorum": "pure",
    "lighthouse.roster": "pure",
    "lighthouse.service": "shell",
    "lighthouse.views": "pure",
    "lighthouse_config": "door",
    "log_lines": "door",
    "main": "door",
    "messages": "noun",
    "one_word": "door",
    "plain_text": "pure",
    "sim.__init__": "stage",
    "sim.__main__": "stage",
    "sim.clock": "stage",
    "sim.collective": "stage",
    "sim.crowd": "stage",
    "sim.fleet": "stage",
    "sim.invariants": "stage",
    "sim.lighthouse": "stage",
    "sim.listening": "stage",
    "sim.many": "stage",
    "sim.member": "stage",
    "sim.mutants": "stage",
    "sim.network": "stage",
    "sim.scale": "stage",
    "sim.schedule": "stage",
    "sim.soak": "stage",
    "sim.tasks": "stage",
    "status": "door",
    "supervisor.__init__": "door",
    "supervisor.afterwards": "shell",
    "supervisor.budget": "pure",
    "supervisor.chain": "shell",
    "supervisor.chronicle": "shell",
    "supervisor.commands": "shell",
    "supervisor.control": "shell",
    "supervisor.control_client": "shell",
    "supervisor.control_loop": "shell",
    "supervisor.control_socket": "shell",
    "supervisor.control_verbs": "pure",
    "supervisor.control_words": "pure",
    "supervisor.crew": "shell",
    "supervisor.end": "shell",
    "supervisor.endings": "shell",
    "supervisor.exits": "pure",
    "supervisor.failure_calls": "shell",
    "supervisor.guard": "door",
    "supervisor.guard_register": "shell",
    "supervisor.health": "pure",
    "supervisor.health_words": "pure",
    "supervisor.idleness": "pure",
    "supervisor.keeper": "shell",
    "supervisor.keeping": "shell",
    "supervisor.lane": "shell",
    "supervisor.leavers": "shell",
    "supervisor.life": "pure",
    "supervisor.loop": "shell",
    "supervisor.manager": "shell",
    "supervisor.monitor": "shell",
    "supervisor.monitor_settings": "shell",
    "supervisor.muster": "shell",
    "supervisor.notify_socket": "shell",
    "supervisor.oom": "shell",
    "supervisor.output": "shell",
    "supervisor.pid_file": "shell",
    "supervisor.plan": "pure",
    "supervisor.probes": "shell",
    "supervisor.process": "shell",
    "supervisor.procfs": "shell",
    "supervisor.ready_workers": "shell",
    "supervisor.records": "shell",
    "supervisor.recovery": "shell",
    "supervisor.recovery_settings": "shell",
    "supervisor.reports": "shell",
    "supervisor.restarts": "pure",
    "supervisor.stacks": "shell",
    "supervisor.state": "shell",
    "supervisor.state_file": "shell",
    "supervisor.stop_signals": "shell",
    "supervisor.sweep": "shell",
    "supervisor.systemd": "shell",
    "supervisor.tasks": "pure",
    "supervisor.url_checks": "shell",
    "supervisor.url_patience": "pure",
    "supervisor.ward": "pure",
    "supervisor.watched": "shell",
    "supervisor.watchpost": "shell",
    "supervisor.worker": "shell",
    "supervisor.worker_events": "pure",
    "validation": "model",
    "worker_config": "model",
    "worker_launcher": "door",
    "worker_places": "model",
    "yaml_file": "door",
}

STRANGERS = {"lighthouse", "client", "supervisor"}
"""Folders that never import each other: they run on different machines and speak in messages."""

IMPURE_MODULES = {
    *("asyncio", "ctypes", "fcntl", "mmap", "multiprocessing", "os", "pathlib", "queue", "random", "sched"),
    *(
        "secrets",
        "select",
        "selectors",
        "shutil",
        "socket",
        "ssl",
        "subprocess",
        "tempfile",
        "threading",
        "time",
    ),
    "uuid",
}
IMPURE_CALLS = {"open", "print", "input", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}


# --- who imports whom ---


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.AST, module: str) -> Iterator[str]:
    """The full name of everything imported, be it a module or a name in one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = f"procguard.{module}".split(".")[: -node.level] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def room_of(name: str, rooms: dict[str, str]) -> str:
    """The room of an imported name of ours: a module, a package, or the one that defines it."""
    inside = name.partition(".")[2]
    around = inside.rpartition(".")[0]
    candidates = [inside, f"{inside}.__init__", around, f"{around}.__init__".lstrip(".")]
    return next((candidate for candidate in candidates if candidate in rooms), around or inside)


def folder(module: str) -> str:
    """``lighthouse`` of ``lighthouse.core``; empty for what stands at the front."""
    return module.rpartition(".")[0]


def adapter_of(module: str) -> str:
    """Files of one adapter begin with the same word: ``collective``, ``collective_links``."""
    return module.partition("_")[0]


def violations(source: str, module: str, rooms: dict[str, str]) -> list[str]:
    """What this module's source does that its layer may not; a sentence each."""
    tree, kind = ast.parse(source), rooms[module]
    wrong = []
    for imported in sorted(set(imports(tree, module))):
        top = imported.partition(".")[0]
        if imported == "procguard":  # loads nothing else, and whoever imports one of its rooms has it already
            continue
        if top == "procguard":
            wrong += wrong_direction(module, room_of(imported, rooms), rooms)
        elif top not in sys.stdlib_module_names and top not in LAYERS[kind].third_party:
            wrong.append(f"imports {imported}, which the layer {kind!r} may not")
    wrong += impurities(tree, module) if LAYERS[kind].pure else []
    return list(dict.fromkeys(wrong))


def wrong_direction(module: str, target: str, rooms: dict[str, str]) -> list[str]:
    if target not in rooms:
        return [f"imports {target}, which ROOMS in tests/test_house.py does not list"]
    kind, target_kind = rooms[module], rooms[target]
    here, there = folder(module), folder(target)
    if {here, there} <= STRANGERS and here != there:
        return [f"imports {target}, but {here} and {there} speak in messages only"]
    near = here in (there, "") and target_kind in LAYERS[kind].own_folder
    same_adapter = kind == target_kind == "adapter" and adapter_of(module) == adapter_of(target)
    if near or same_adapter or target_kind in LAYERS[kind].anywhere:
        return []
    return [f"imports {target}: from layer {kind!r} one may not reach layer {target_kind!r} there"]


def impurities(tree: ast.Module, module: str) -> list[str]:
    running = WithoutTypeChecking().visit(tree)
    found = {
        f"imports {top}"
        for name in imports(running, module)
        if (top := name.partition(".")[0]) in IMPURE_MODULES
    }
    for node in ast.walk(running):
        if isinstance(node, ast.Call) and ".".join(ast.unparse(node.func).split(".")[-2:]) in IMPURE_CALLS:
            found.add(f"calls {ast.unparse(node.func)}")
    return [f"{what}, but pure code gets time, randomness and I/O as arguments" for what in sorted(found)]


class WithoutTypeChecking(ast.NodeTransformer):
    """Drops what stands under ``if TYPE_CHECKING``: it never runs."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        return node.orelse if ast.unparse(node.test).endswith("TYPE_CHECKING") else self.generic_visit(node)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward_only(module: str) -> None:
    assert module in ROOMS, (
        f"procguard.{module} has no room: add the line {module!r}: <layer> to ROOMS in tests/test_house.py, "
        f"where <layer> is one of {', '.join(LAYERS)}"
    )
    wrong = violations(MODULES[module].read_text(encoding="utf-8"), module, ROOMS)
    assert not wrong, f"procguard.{module} " + "; ".join(wrong)


SOME_ROOMS = {
    "__init__": "door",
    "errors": "noun",
    "main": "door",
    "adapters.base": "port",
    "adapters.zmq": "adapter",
    "adapters.collective": "adapter",
    "adapters.collective_links": "adapter",
    "client.__init__": "door",
    "client.link": "shell",
    "client.manager": "door",
    "client.session": "pure",
    "client.fence": "pure",
    "lighthouse.core": "pure",
    "lighthouse.service": "shell",
    "lighthouse.cli": "door",
}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("errors", "import msgpack"),
        ("client.session", "from procguard.errors import UsageError"),
        ("client.session", "from procguard.client import fence"),
        ("client.session", "from .fence import Fence"),
        ("client.session", "from datetime import timedelta"),
        ("client.session", "if TYPE_CHECKING:\n    from random import Random"),
        ("client.link", "import zmq, os\nfrom procguard.client.session import Session"),
        ("client.link", "from procguard.adapters.base import Wire"),
        (
            "client.manager",
            "from procguard.adapters.zmq import connect\nfrom procguard.client.link import Link",
        ),
        ("client.__init__", "from .manager import Manager"),
        ("adapters.collective", "import numpy\nfrom procguard.adapters.collective_links import Links"),
        ("lighthouse.cli", "from procguard.lighthouse import service"),
        (
            "main",
            "def main():\n    from procguard.lighthouse.cli import main\n    import procguard.client.link",
        ),
        ("main", "from procguard import __version__\nimport procguard"),
        ("main", "from procguard.client import Manager"),
        ("client.link", "import procguard"),
    ],
)
def test_what_a_room_may_do(module: str, source: str) -> None:
    assert violations(source, module, SOME_ROOMS) == []


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("errors", "import procguard.client.session", "from layer 'noun' one may not reach layer 'pure'"),
        ("errors", "import zmq", "imports zmq, which the layer 'noun' may not"),
        ("client.session", "import zmq", "imports zmq, which the layer 'pure' may not"),
        ("client.session", "import time", "imports time, but pure"),
        ("client.session", "def f():\n    from os import path", "imports os, but pure"),
        (
            "client.session",
            "from datetime import datetime\nx = datetime.now()",
            "calls datetime.now, but pure",
        ),
        (
            "client.session",
            "import datetime\nx = datetime.datetime.now()",
            "calls datetime.datetime.now, but",
        ),
        ("client.session", "x = open('f')", "calls open, but pure"),
        (
            "client.session",
            "from procguard.client import link",
            "layer 'pure' one may not reach layer 'shell'",
        ),
        ("client.session", "from . import link", "layer 'pure' one may not reach layer 'shell'"),
        ("client.session", "if TYPE_CHECKING:\n    from .link import Link", "may not reach layer 'shell'"),
        (
            "client.session",
            "from ..lighthouse.core import step",
            "client and lighthouse speak in messages only",
        ),
        (
            "client.link",
            "from procguard.client import Manager",
            "layer 'shell' one may not reach layer 'door'",
        ),
        ("client.link", "from procguard.adapters.zmq import connect", "may not reach layer 'adapter'"),
        ("client.manager", "import procguard.lighthouse.cli", "client and lighthouse speak in messages only"),
        ("lighthouse.cli", "from procguard.client.session import Session", "speak in messages only"),
        ("adapters.zmq", "import procguard.client.session", "may not reach layer 'pure'"),
        ("adapters.zmq", "from procguard.adapters.collective import Ring", "may not reach layer 'adapter'"),
        ("main", "from procguard.attic import old", "imports attic, which ROOMS"),
    ],
)
def test_what_a_room_may_not_do(module: str, source: str, said: str) -> None:
    (wrong,) = violations(source, module, SOME_ROOMS)
    assert said in wrong


# --- what an import loads ---


def loaded_by(statement: str) -> set[str]:
    """The modules that the statement adds to a fresh interpreter's."""
    program = (
        "import json, sys; before = set(sys.modules); {}; print(json.dumps([*set(sys.modules) - before]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program.format(statement)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return set(json.loads(answer.stdout))


def third_parties(loaded: set[str]) -> set[str]:
    tops = {name.partition(".")[0] for name in loaded}
    return tops - set(sys.stdlib_module_names) - {"procguard"}


def ours(loaded: set[str]) -> set[str]:
    return {name for name in loaded if name.partition(".")[0] == "procguard"}


def test_importing_the_package_imports_nothing_else() -> None:
    loaded = loaded_by("import procguard")
    assert ours(loaded) == {"procguard"}
    assert third_parties(loaded) == set()
    assert "importlib.metadata" not in loaded


def test_the_version_is_the_installed_one() -> None:
    assert procguard.__version__ == version("procguard")
    with pytest.raises(AttributeError, match="has no attribute 'versoin'"):
        _ = procguard.versoin


def test_the_variables_cost_a_trainer_nothing_but_themselves() -> None:
    loaded = loaded_by("import procguard.env")
    assert ours(loaded) == {"procguard", "procguard.env", "procguard.errors"}
    assert third_parties(loaded) == set()


def test_a_listener_loads_its_own_rooms_zmq_and_msgpack_only() -> None:
    """Its start-up time and its memory are paid once for every trainer of the machine."""
    loaded = loaded_by("import procguard.client.listener")
    strangers = third_parties(loaded) - {"zmq", "msgpack"}
    assert {name for name in strangers if not name.startswith(("cython_runtime", "_cython_"))} == set()
    rooms = {
        "messages",
        "codec",
        "codec_glances",
        "errors",
        "kernel",
        "client",
        "adapters",
        "adapters.base",
        "adapters.scheduling",
    }
    elsewhere = ours(loaded) - {"procguard", *(f"procguard.{room}" for room in rooms)}
    assert {
        name for name in elsewhere if not name.startswith(("procguard.client.", "procguard.adapters.zmq"))
    } == set()


# --- who reads the variables ---


READING = re.compile(r"""(environ\[|environ\.get\(|getenv\()\s*["'](PROCGUARD|TORCHFT)_""")


@pytest.mark.parametrize("module", [module for module in MODULES if module != "env"])
def test_only_env_reads_our_variables(module: str) -> None:
    assert not READING.search(MODULES[module].read_text(encoding="utf-8")), "ask procguard.env for it"


# --- how things are called ---

EMPTY_WORDS = {"handler", "util", "helper", "common", "data", "info"}
"""Words that say nothing: what does it handle, help with, or know?"""

ALLOWED_NAMES = {
    "FailureHandler": "an interface that users already know",
    "DistributedDataParallel": "the name that torch gives it",
}


def words(name: str) -> set[str]:
    """The words of a snake_case or CamelCase name, in the singular."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return {part.lower().removesuffix("s") for part in parts}


def test_names_are_split_into_their_words() -> None:
    assert words("HTTPErrorHandlers") == {"http", "error", "handler"}
    assert words("_load_metadata2_utils") == {"load", "metadata", "util"}


@pytest.mark.parametrize("module", MODULES)
def test_names_say_something(module: str) -> None:
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    names = {node.name for node in ast.walk(tree) if isinstance(node, definitions)} | set(module.split("."))
    empty = {name: sorted(words(name) & EMPTY_WORDS) for name in names - set(ALLOWED_NAMES)}
    assert {name: found for name, found in empty.items() if found} == {}, (
        "a name says what the thing is or does; one that must be is listed in ALLOWED_NAMES with its reason"
    )
