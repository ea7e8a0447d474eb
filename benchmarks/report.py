"""The one form in which every benchmark reports: a JSON object, or the same as a table."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import click
import psutil


@dataclass
class Case:
    """What was measured in one situation, ``n`` times; milliseconds unless the unit says otherwise."""

    name: str
    members: int
    n: int
    p50: float
    p99: float
    max: float
    unit: str = "ms"
    note: str = ""

    @classmethod
    def of(cls, name: str, members: int, values: Sequence[float], note: str = "", unit: str = "ms") -> Case:
        p50, p99 = quantile(values, 0.50), quantile(values, 0.99)
        return cls(name, members, len(values), _short(p50), _short(p99), _short(max(values)), unit, note)


@dataclass
class Target:
    """A promise, and what was measured of it."""

    name: str
    bound: str
    target: float
    measured: float
    met: bool

    @classmethod
    def at_most(cls, name: str, target: float, measured: float) -> Target:
        return cls(name, "at most", target, _short(measured), measured <= target)

    @classmethod
    def at_least(cls, name: str, target: float, measured: float) -> Target:
        return cls(name, "at least", target, _short(measured), measured >= target)


@dataclass
class Report:
    benchmark: str
    machine: str
    cases: list[Case] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    def show(self, as_json: bool) -> None:
        """Print it."""
        if as_json:
            click.echo(json.dumps(asdict(self)))
            return
        click.echo(f"{self.benchmark} on {self.machine}\n")
        _table(["case", "members", "n", "p50", "p99", "max", "unit", ""], [
            [c.name, c.members, c.n, c.p50, c.p99, c.max, c.unit, c.note] for c in self.cases
        ])  # fmt: skip
        click.echo()
        _table(["target", "wanted", "measured", ""], [
            [t.name, f"{t.bound} {t.target:g}", t.measured, "met" if t.met else "MISSED"]
            for t in self.targets
        ])  # fmt: skip


def new_report(benchmark: str) -> Report:
    """An empty report that names this machine."""
    memory_gib = psutil.virtual_memory().total / 2**30
    system = f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}"
    return Report(benchmark, f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, {system}")


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _short(value: float) -> float:
    return round(value, 3)


def _table(head: list[str], rows: list[list[Any]]) -> None:
    cells = [head, *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        line = [cell.ljust(widths[i]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(row)]
        click.echo("  ".join(line).rstrip())
