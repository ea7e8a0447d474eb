"""What every test relies on: an environment without our variables, and property tests without a stopwatch."""

from __future__ import annotations

import os
import tempfile

from hypothesis import settings

# A developer's own settings must not steer the tests, nor the processes that they start.
for name in [name for name in os.environ if name.startswith(("PROCGUARD_", "TORCHFT_", "REPLICA_"))]:
    del os.environ[name]

# Nor must a guard that runs here: where tests look for guards there are their own alone.
_runtime = tempfile.TemporaryDirectory(prefix="pg-")
os.environ["PROCGUARD_RUNTIME_DIR"] = _runtime.name


def pytest_unconfigure() -> None:
    _runtime.cleanup()


# On a loaded machine any example may be slow; a failure prints the line that replays it.
settings.register_profile("procguard", deadline=None, print_blob=True)
settings.load_profile("procguard")
