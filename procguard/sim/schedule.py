"""A schedule from a seed: who is there, what the network is like, and which faults strike when.

Every schedule lasts 20 virtual seconds or more and has three faults or more. Faults overlap freely. What they
leave standing is always enough for a quorum, so that training must go on once they are over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from random import Random
from typing import NamedTuple

from procguard.messages import Settings
from procguard.sim.lighthouse import Disk

LENGTH_S = 20.0
FAULTS_MIN, FAULTS_MAX = 3, 8
FIRST_FAULT_S, LAST_FAULT_S = 1.5, 11.0
SIZES = ((150, 2, 4), (40, 5, 8), (9, 9, 16), (1, 17, 64))
"""Weight, and the range of members: most faults need few members, and many cost time."""


OLDEST = "the trainer's own"
"""Of the connections to hold up; otherwise it is any."""
KILLED_WHEN = ("at once", "while sending", "before persisting", "after persisting")


class Kind(Enum):
    CRASH = "crash"
    MASS_CRASH = "mass crash"
    VANISH = "vanish"
    GONE = "gone for good"
    LEAVE = "leave"
    STOP = "stop the trainer"
    STOP_BOTH = "stop trainer and listener"
    PAUSE = "pause 300 ms"
    HANG = "hang"
    LISTENER = "kill the listener"
    PARTITION = "partition"
    FLAP = "flapping partition"
    CUT = "cut connections"
    HOLD = "hold up one connection"
    NOTICE_LOSS = "lose notices"
    LIGHTHOUSE_KILL = "kill the lighthouse"
    LIGHTHOUSE_PAUSE = "stop the lighthouse"


WEIGHTS = {
    Kind.CRASH: 10,
    Kind.MASS_CRASH: 4,
    Kind.VANISH: 4,
    Kind.GONE: 3,
    Kind.LEAVE: 6,
    Kind.STOP: 5,
    Kind.STOP_BOTH: 5,
    Kind.PAUSE: 5,
    Kind.HANG: 4,
    Kind.LISTENER: 8,
    Kind.PARTITION: 8,
    Kind.FLAP: 4,
    Kind.CUT: 8,
    Kind.HOLD: 8,
    Kind.NOTICE_LOSS: 8,
    Kind.LIGHTHOUSE_KILL: 14,
    Kind.LIGHTHOUSE_PAUSE: 4,
}


class Fault(NamedTuple):
    """One thing that goes wrong.

    Attributes:
        length_s: how long it lasts, or until what it ended is started again.
        amount: a share, a number of frames, a period; what its kind makes of it.
        mode: which variant of its kind.
    """

    at: float
    kind: Kind
    who: tuple[str, ...]
    length_s: float
    amount: float
    mode: str

    def __str__(self) -> str:
        whom = " of " + ", ".join(self.who) if self.who else ""
        mode = f" ({self.mode})" if self.mode else ""
        return f"{self.kind.value}{whom}{mode}, {self.length_s:.2f} s, {self.amount:.3g}"


@dataclass(frozen=True)
class Schedule:
    """All that a run depends on; ``seed`` also seeds every chance within it."""

    seed: int
    names: tuple[str, ...]
    min_replicas: int
    settings: Settings
    step_s: float
    timeout_s: float
    quorum_timeout_s: float
    progress_timeout_s: float
    delay_s: float
    jitter_s: float
    loss: float
    faults: tuple[Fault, ...]
    length_s: float = LENGTH_S


def schedule_of(seed: int, low: int = 2, high: int = 64) -> Schedule:
    """The schedule of a seed, with ``low`` to ``high`` members."""
    random = Random(f"schedule {seed}")
    names = tuple([f"m{number:02d}" for number in range(_size(random, low, high))])
    min_replicas = random.randint(1, max(1, (len(names) + 1) // 2))
    settings = Settings(
        heartbeat_interval_s=0.1,
        heartbeat_timeout_s=1.0,
        thread_heartbeat_timeout_s=5.0,
        disconnect_grace_s=0.3,
        join_timeout_s=random.choice([1.0, 2.0, 4.0]),
    )
    return Schedule(
        seed=seed,
        names=names,
        min_replicas=min_replicas,
        settings=settings,
        step_s=random.uniform(0.4, 1.0),
        timeout_s=4.0,
        quorum_timeout_s=60.0,
        progress_timeout_s=random.choice([0.0, 0.0, 2.0]),
        delay_s=random.choice([0.00005, 0.0005, 0.02]),
        jitter_s=random.choice([0.0001, 0.005, 0.04]),
        loss=random.choice([0.0, 0.0, 0.01]),
        faults=_faults(random, names, min_replicas),
    )


def _size(random: Random, low: int, high: int) -> int:
    (_, least, most) = random.choices(SIZES, [weight for weight, _, _ in SIZES])[0]
    return min(max(random.randint(least, most), low), high)


def _faults(random: Random, names: tuple[str, ...], min_replicas: int) -> tuple[Fault, ...]:
    spare = list(names)
    random.shuffle(spare)
    del spare[: max(min_replicas, 2)]  # so many stay, whoever goes for good
    kinds = random.choices(list(WEIGHTS), list(WEIGHTS.values()), k=random.randint(FAULTS_MIN, FAULTS_MAX))
    faults = []
    for kind in kinds:
        at = random.uniform(FIRST_FAULT_S, LAST_FAULT_S)
        if kind is Kind.GONE and not spare:
            kind = Kind.CRASH  # noqa: PLW2901  # nobody can be spared
        fault = _fault(random, kind, at, names)
        faults.append(fault._replace(who=(spare.pop(),)) if kind is Kind.GONE else fault)
    return tuple(sorted(faults, key=lambda fault: fault.at))


def _fault(random: Random, kind: Kind, at: float, names: tuple[str, ...]) -> Fault:
    one = (random.choice(names),)
    some = tuple(random.sample(names, random.randint(1, len(names))))
    whole_lighthouse = kind in (Kind.NOTICE_LOSS, Kind.LIGHTHOUSE_KILL, Kind.LIGHTHOUSE_PAUSE)
    many = kind in (Kind.MASS_CRASH, Kind.PARTITION, Kind.CUT, Kind.PAUSE)
    who = () if whole_lighthouse else some if many else one
    lengths = {
        Kind.PAUSE: (0.3, 0.3),
        Kind.PARTITION: (0.1, 3.0),
        Kind.FLAP: (1.0, 4.0),
        Kind.STOP: (0.3, 4.0),
        Kind.STOP_BOTH: (0.3, 4.0),
        Kind.HANG: (1.0, 6.0),
        Kind.HOLD: (0.5, 4.0),
        Kind.NOTICE_LOSS: (2.0, 8.0),
        Kind.LIGHTHOUSE_KILL: (0.02, 3.0),
        Kind.LIGHTHOUSE_PAUSE: (0.3, 3.0),
    }
    modes = {
        Kind.GONE: ("crash", "leave", "vanish"),
        Kind.PARTITION: ("up", "down", "both"),
        Kind.FLAP: ("up", "down", "both"),
        Kind.CUT: ("heard", "unheard"),
        Kind.LIGHTHOUSE_PAUSE: ("stop", "suspend"),
        Kind.LIGHTHOUSE_KILL: tuple([f"{when}, {disk.value} state" for disk in Disk for when in KILLED_WHEN]),
    }  # fmt: skip
    amount = random.random()
    if kind is Kind.LIGHTHOUSE_KILL:
        amount = float(random.randint(0, 3 * len(names)))
    length_s = random.uniform(*lengths.get(kind, (0.05, 3.0)))
    return Fault(at, kind, who, length_s, amount, random.choice(modes.get(kind, ("",))))


def mass_death(members: int, dying: int, seed: int = 1) -> Schedule:
    """So many of so many die at once for good, and the lighthouse, held up, learns of all in one batch."""
    calm = undisturbed(members, seed)
    deaths = [Fault(12.1, Kind.GONE, (name,), 0.1, 0.0, "crash") for name in calm.names[:dying]]
    faults = (
        Fault(12.0, Kind.LIGHTHOUSE_PAUSE, (), 0.5, 0.0, "stop"),
        *deaths,
        Fault(12.2, Kind.NOTICE_LOSS, (), 1.0, 0.5, ""),
    )
    return replace(calm, faults=faults, step_s=max(1.0, members / 250), timeout_s=8.0)


def undisturbed(members: int, seed: int = 1) -> Schedule:
    """So many on a good network, and nothing goes wrong."""
    return replace(
        schedule_of(seed, members, members),
        faults=(),
        min_replicas=1,
        step_s=0.5,
        delay_s=0.0005,
        jitter_s=0.0001,
        loss=0.0,
        progress_timeout_s=0.0,
    )


def one_hangs() -> Schedule:
    """One of three computes until its peers' collective has timed out; they wait for it, and all go on."""
    calm = undisturbed(3)
    settings = calm.settings._replace(join_timeout_s=15.0)
    return replace(calm, faults=(Fault(6.0, Kind.HANG, calm.names[:1], 5.5, 0.0, ""),), settings=settings)
