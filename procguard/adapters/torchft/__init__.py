"""torchft on ProcGuard: the classes of ``torchft.coordination``, and torchft's own Manager on top of them.

Three ways to use it::

    python -m procguard.adapters.torchft train.py ...       # an unchanged train script
    from procguard.adapters import torchft; torchft.install()  # the same, said in the script's first lines
    from procguard.adapters.torchft import LighthouseClient    # the classes themselves; no torch needed

Names, arguments, attributes and exceptions are those of ``torchft._torchft``; what is spoken is ProcGuard's
own wire, to a ``procguard-lighthouse``. What differs, and why, is in docs/migrating-from-torchft.md.

Lazy: whoever wants a ``LighthouseServer`` need not load what only a trainer needs, and nobody but ``install``
needs torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from procguard.adapters.torchft.installation import install
    from procguard.adapters.torchft.lighthouse_client import LighthouseClient
    from procguard.adapters.torchft.lighthouse_server import LighthouseServer
    from procguard.adapters.torchft.manager_client import ManagerClient
    from procguard.adapters.torchft.manager_server import ManagerServer
    from procguard.adapters.torchft.results import Quorum, QuorumMember, QuorumResult, Timestamp

__all__ = [
    "LighthouseClient",
    "LighthouseServer",
    "ManagerClient",
    "ManagerServer",
    "Quorum",
    "QuorumMember",
    "QuorumResult",
    "Timestamp",
    "install",
]

_ROOMS = {
    "LighthouseClient": "lighthouse_client",
    "LighthouseServer": "lighthouse_server",
    "ManagerClient": "manager_client",
    "ManagerServer": "manager_server",
    "install": "installation",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_ROOMS.get(name, 'results')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
