"""``python -m procguard.adapters.torchft train.py [args]``: an unchanged torchft train script, on ProcGuard.

Also ``-m package.module [args]``. Under torchrun: ``torchrun ... -m procguard.adapters.torchft train.py``.
"""

from __future__ import annotations

import os
import runpy
import sys

from procguard.adapters.torchft.installation import install
from procguard.errors import ProcGuardError

USAGE = (
    "usage: python -m procguard.adapters.torchft TRAIN.py [args ...], or -m MODULE [args ...] in its place"
)


def main(argv: list[str]) -> None:
    """Install, then run the script as Python itself would."""
    if argv[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return
    as_module = argv[:1] == ["-m"]
    target, arguments = argv[as_module : as_module + 1], argv[as_module + 1 :]
    if not target:
        sys.exit(USAGE)
    if not as_module and not os.path.exists(target[0]):
        sys.exit(f"Error: there is no {target[0]}; {USAGE}")
    try:
        install()
    except ProcGuardError as error:
        sys.exit(f"Error: {error}")
    sys.argv = [target[0], *arguments]
    if as_module:
        runpy.run_module(target[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(target[0]))
        runpy.run_path(target[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
