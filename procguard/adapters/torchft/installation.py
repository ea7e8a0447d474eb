"""``install()``: torchft's own Manager, with all that stands on it, speaks to ProcGuard from now on.

torchft's compiled module is where its Manager gets its coordination classes from; ours take their places
there and wherever else in torchft they were imported to. Its Manager is told two things that it does not tell
by itself: which rank it is, so that this process joins in its main thread, and which process group a failure
is to free. Nothing else of torchft is changed.

A script that has imported torchft's classes by name before ``install()`` keeps the old ones: say it first.
"""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable, MutableMapping
from importlib import import_module
from typing import Any

from procguard.env import TrainerSettings
from procguard.errors import UsageError

_MARK = "_procguard_original"


def install() -> None:
    """Put ProcGuard's classes in the place of torchft's; again: no difference.

    PROCGUARD_LIGHTHOUSE, PROCGUARD_TIMEOUT_SEC and the like are made known to torchft under its own names,
    where those are unset.

    Raises:
        UsageError: torchft is not installed, is one that this was not made for, or a variable cannot work.
    """
    compiled, manager, groups = _torchft()
    if hasattr(manager.Manager, _MARK):
        return
    _tell_variables(os.environ)
    _replace_classes(compiled)
    _attend(manager.Manager, groups)
    setattr(manager.Manager, _MARK, True)


def _torchft() -> tuple[Any, Any, Any]:
    try:
        compiled = import_module("torchft._torchft")
        manager = import_module("torchft.manager")
        groups = import_module("torchft.process_group")
    except ImportError as error:
        raise UsageError(f"torchft cannot be imported ({error}); pip install torchft-nightly") from None
    wanted = {
        "torchft._torchft": (compiled, ("ManagerClient", "ManagerServer", "LighthouseServer")),
        "torchft.manager": (manager, ("Manager", "ManagerClient", "ManagerServer")),
        "torchft.process_group": (groups, ("ProcessGroupGloo", "create_store_client", "ReconfigureOptions")),
    }
    for where, (module, names) in wanted.items():
        for name in names:
            if not hasattr(module, name):
                raise UsageError(
                    f"this torchft has no {where}.{name}; ProcGuard's adapter was made for torchft-nightly "
                    "2026.10.26"
                )
    return compiled, manager, groups


def _replace_classes(compiled: Any) -> None:
    ours = import_module("procguard.adapters.torchft")
    theirs = {id(getattr(compiled, name)): name for name in ours.__all__ if hasattr(compiled, name)}
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "torchft"]
    for module in modules:
        for name, value in list(vars(module).items()):
            if id(value) in theirs:
                setattr(module, name, getattr(ours, theirs[id(value)]))


def _attend(manager: Any, groups: Any) -> None:
    from procguard.adapters.torchft.breaker import Breaker, create_store_client
    from procguard.adapters.torchft.manager_client import ManagerClient

    groups.create_store_client = functools.partial(create_store_client, groups.create_store_client)
    begin: Callable[..., None] = manager.__init__
    end: Callable[..., None] = manager.shutdown

    @functools.wraps(begin)
    def __init__(self: Any, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        if isinstance(self._client, ManagerClient):
            self._client.take_seat(self._group_rank, Breaker(self._pg, groups.ProcessGroupGloo))

    @functools.wraps(end)
    def shutdown(self: Any, *arguments: Any, **named: Any) -> None:
        try:
            end(self, *arguments, **named)
        finally:
            if isinstance(self._client, ManagerClient):
                self._client.shutdown()

    manager.__init__, manager.shutdown = __init__, shutdown


def _tell_variables(environ: MutableMapping[str, str]) -> None:
    """Those that ProcGuard's trainers obey, by the names that torchft's Manager reads; in whole seconds."""
    found = TrainerSettings.read(environ)
    spans = {
        "TORCHFT_TIMEOUT_SEC": found.timeout,
        "TORCHFT_QUORUM_TIMEOUT_SEC": found.quorum_timeout,
        "TORCHFT_CONNECT_TIMEOUT_SEC": found.connect_timeout,
    }
    said: dict[str, object] = {name: math.ceil(span.total_seconds()) for name, span in spans.items() if span}
    if found.lighthouse is not None:
        said["TORCHFT_LIGHTHOUSE"] = f"http://{found.lighthouse}"
    if found.quorum_retries is not None:
        said["TORCHFT_QUORUM_RETRIES"] = found.quorum_retries
    if found.manager_port is not None:
        said["TORCHFT_MANAGER_PORT"] = found.manager_port
    for name, value in said.items():
        if not environ.get(name, "").strip():
            environ[name] = str(value)
