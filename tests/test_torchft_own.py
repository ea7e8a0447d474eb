"""torchft's own tests of its Manager, LocalSGD and DiLoCo, as its package brings them, on ProcGuard."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.lighthouse.running import REPOSITORY

for needed in ("torchft", "parameterized"):
    if find_spec(needed) is None:
        why = f"{needed} is not installed: pip install 'procguard[torchft,test]'"
        pytest.skip(why, allow_module_level=True)

DEADLINE_S = 300.0


def passed(tmp_path: Path, which: str, *modules: str) -> int:
    """How many tests did; all one after the other, because they listen on ports of their choice."""
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.on_procguard", "-p", "no:cacheprovider"),
            *("-p", "no:warnings", "-c", os.devnull, "--rootdir", str(tmp_path)),
            *("-k", which, "--pyargs", *(f"torchft.{module}" for module in modules)),
        ],
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    found = re.search(r"(\d+) passed", ran.stdout)
    assert found is not None, ran.stdout[-2000:]
    return int(found[1])


HASTY = "upscale or TestLighthouse"
"""For an idle machine: their lighthouse waits 0.1 s for a replica that computes, and goes on without it."""


def test_its_manager_local_sgd_and_diloco(tmp_path: Path) -> None:
    modules = ("coordination_test", "manager_integ_test", "local_sgd_integ_test")
    assert passed(tmp_path, f"not ({HASTY})", *modules) >= 1 + 7 + 16


@pytest.mark.chaos
def test_its_lighthouse_and_a_newcomer(tmp_path: Path) -> None:
    assert passed(tmp_path, HASTY, "lighthouse_test", "local_sgd_integ_test") >= 4 + 12
