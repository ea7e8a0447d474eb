"""Spans of time, amounts of memory and tables, as people read them in a terminal."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP = 1024.0


def span(seconds: float) -> str:
    """A time span in its two greatest units."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours, days = int(seconds) // 60, int(seconds) // 3600, int(seconds) // 86400
    if not hours:
        return f"{minutes} min {int(seconds) % 60} s"
    return f"{days} d {hours % 24} h" if days else f"{hours} h {minutes % 60} min"


def amount(count: float) -> str:
    """Bytes in the unit that leaves at most four digits: ``1.2 GiB``, ``312 MiB``."""
    for unit in _UNITS[:-1]:
        if count < _STEP:
            return f"{count:.1f} {unit}" if count < 10 and unit != "B" else f"{count:.0f} {unit}"
        count /= _STEP
    return f"{count:.1f} {_UNITS[-1]}"


def table(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> Iterator[str]:
    """Aligned columns, indented; those in ``right`` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        aligned = [cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in cells]
        yield ("  " + "  ".join(aligned)).rstrip()
