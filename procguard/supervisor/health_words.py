"""The words of the rules of health: how a worker can be, what can happen to it, what should be done about
it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias


class HealthStatus(str, Enum):
    """How a worker is, as far as the monitor can see."""

    HEALTHY = "healthy"
    STARTING = "starting"
    UNHEALTHY = "unhealthy"
    """Its health URL fails."""
    UNRESPONSIVE = "unresponsive"
    """Alive, but silent or idle for too long."""
    DEAD = "dead"
    ZOMBIE = "zombie"
    """Ended, and not reaped by its parent."""
    STOPPED = "stopped"
    """Ended cleanly, or stopped by us."""
    UNKNOWN = "unknown"
    """Nothing was heard or seen of it yet."""


class Cause(str, Enum):
    """Why a worker is failed."""

    DIED = "died"
    DEFUNCT = "defunct"
    NO_HEARTBEAT = "no_heartbeat"
    WATCHDOG_TRIGGERED = "watchdog_triggered"
    URL_FAILS = "url_fails"
    IDLE = "idle"
    NOT_READY = "not_ready"
    NOT_STOPPING = "not_stopping"


@dataclass(frozen=True, slots=True)
class UrlRule:
    """A health URL is asked every ``interval_s``, and waited for ``timeout_s``."""

    interval_s: float = 5.0
    timeout_s: float = 2.0
    failures_max: int = 3
    """So many in a row are a failure of the worker."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What is asked of one worker."""

    heartbeat_timeout_s: float = 10.0
    start_period_s: float = 30.0
    stop_timeout_s: float = 10.0
    ready_expected: bool = False
    idle_fails: bool = True
    cpu_threshold_percent: float = 1.0
    """Of one CPU."""
    memory_threshold_bytes: float = 0.0
    """Resident."""
    sample_interval_s: float = 1.0
    url: UrlRule | None = None


# --- what can happen ---


@dataclass(frozen=True, slots=True)
class Started:
    """A new life begins; ``pid`` None for a worker that is not a process of this machine."""

    pid: int | None = None
    adopted: bool = False
    """It began under an earlier guard, which has heard what a worker says at its start."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The process has ended. ``failed``: by its own fault; ``defunct``: nobody has reaped it yet."""

    failed: bool
    text: str
    defunct: bool = False


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat, or ``WATCHDOG=1``."""


@dataclass(frozen=True, slots=True)
class Ready:
    """``READY=1``."""


@dataclass(frozen=True, slots=True)
class Spoke:
    """Anything else that the worker says of itself (``STATUS=...``): a sign of life, not a heartbeat."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """``STOPPING=1``: it ends by its own will."""


@dataclass(frozen=True, slots=True)
class Triggered:
    """``WATCHDOG=trigger``."""


@dataclass(frozen=True, slots=True)
class BeatTimeout:
    """``WATCHDOG_USEC=...``: from now on another heartbeat timeout."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Extended:
    """``EXTEND_TIMEOUT_USEC=...``: no deadline of this worker ends before ``now + extra_s``."""

    extra_s: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process, or a tree of processes, has used so far; ``output`` changes with what it writes."""

    cpu_s: float
    memory_bytes: int
    output: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """The answer to ``Sample``; ``usage`` None where it cannot be seen."""

    usage: Usage | None
    whole_tree: bool = False


@dataclass(frozen=True, slots=True)
class UrlBegun:
    """The question of this number is on its way, after whatever it had to wait for."""

    number: int


@dataclass(frozen=True, slots=True)
class UrlAnswered:
    """It is answered, or failed; ``text`` says how, for people."""

    number: int
    good: bool
    text: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The monitor itself was held up, and knows nothing of the time between."""


Event: TypeAlias = (
    Started
    | Ended
    | Beat
    | Ready
    | Spoke
    | Stopping
    | Triggered
    | BeatTimeout
    | Extended
    | Sampled
    | UrlBegun
    | UrlAnswered
    | Tick
    | Resumed
)


# --- what should be done ---


@dataclass(frozen=True, slots=True)
class Sample:
    """Measure the worker's root process, or all of its tree, and tell by ``Sampled``."""

    whole_tree: bool = False


@dataclass(frozen=True, slots=True)
class AskUrl:
    """Ask the health URL, and tell by ``UrlBegun`` and ``UrlAnswered`` with this number."""

    number: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker is failed, for this reason; ``text`` is for people."""

    status: HealthStatus
    cause: Cause
    text: str

    @property
    def hung(self) -> bool:
        """It lives: its stacks may say where it hangs."""
        return self.status in (HealthStatus.UNRESPONSIVE, HealthStatus.UNHEALTHY)


@dataclass(frozen=True, slots=True)
class Recovered:
    """A failed worker is well again, by itself."""


Effect: TypeAlias = Sample | AskUrl | Failed | Recovered
