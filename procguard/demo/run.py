"""Plays a story: performs its acts on real processes, and follows the journals until a condition holds."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from random import Random
from typing import NamedTuple, Protocol

from procguard.demo.chronicle import Chronicle
from procguard.demo.faults import Kind, draw
from procguard.demo.processes import STEP_TIME_MS, Processes
from procguard.demo.report import Result
from procguard.demo.story import Act, BringBack, Finish, Strike, Until, story
from procguard.errors import ProcGuardError

TICK_S = 0.01
PATIENCE_S = 60.0
"""How long anything may take that is waited for; on an idle machine nothing takes longer than some seconds."""
