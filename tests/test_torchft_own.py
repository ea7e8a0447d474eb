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


@pytest.mark.parametrize(
    ("module", "passed_min"),
    [
        ("coordination_test", 1),
        ("manager_integ_test", 7),
        ("local_sgd_integ_test", 28),
        pytest.param("lighthouse_test", 4, marks=pytest.mark.chaos),  # patience of 0.4 s: for an idle machine
    ],
)
def test_what_torchft_says_of_itself_holds(tmp_path: Path, module: str, passed_min: int) -> None:
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.on_procguard", "-p", "no:cacheprovider"),
            *(
                "-p",
                "no:warnings",
                "-c",
                os.devnull,
                "--rootdir",
                str(tmp_path),
                "--pyargs",
                f"torchft.{module}",
            ),
        ],
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None and int(passed[1]) >= passed_min, ran.stdout[-2000:]
