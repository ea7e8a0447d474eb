"""Records of starts: read back as they were written, and no worse off for what a disk does to them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from procguard.supervisor.records import KEY_LENGTH, Record, RecordBook, config_hash, parse

RECORD = Record("w.0:a", "0123456789abcdef" * 2, "boot", "hash", 12.5, 7, 99)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    book = RecordBook(tmp_path)
    book.write(RECORD)
    other = Record("w", "f" * 32, "boot", "hash", 1.0)
    book.write(other)
    assert book.read_all() == {"w.0:a": RECORD, "w": other}
    book.remove("w")
    book.remove("w")
    assert book.read_all() == {"w.0:a": RECORD}


def test_a_token_tells_the_worker_and_the_directory(tmp_path: Path) -> None:
    book = RecordBook(tmp_path)
    first, second = book.new_token("w"), book.new_token("w")
    assert first != second
    assert first[:KEY_LENGTH] == second[:KEY_LENGTH] == RecordBook(tmp_path).key_of("w")
    assert book.key_of("w") != book.key_of("v") != RecordBook(tmp_path / "other").key_of("v")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "[" * 10_000,
        "{}",
        '{"version": 1, "worker_id": "w0"}',
    ],
)
def test_what_is_no_record_counts_as_lost(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    book = RecordBook(tmp_path)
    (tmp_path / "processes" / "w0.json").write_text(content)
    assert book.read_all() == {}
    assert "counts as lost" in caplog.text


GOOD: dict[str, Any] = {
    "version": 1, "worker_id": "w", "token": "f" * 32, "boot_id": "b", "config_hash": "h", "started_at": 1,
    "pid": 5, "start_ticks": 6,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"pid": -1}, {"pid": True}, {"pid": "5"}, {"token": "f"}, {"boot_id": None},
     {"started_at": "now"}, {"started_at": None}, {"start_ticks": 1.5}],
)  # fmt: skip
def test_each_field_is_looked_at(change: dict[str, Any]) -> None:
    assert parse(GOOD).pid == 5
    with pytest.raises(ValueError):
        parse({**GOOD, **change})


def test_a_disk_that_takes_nothing_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    book = RecordBook(tmp_path)
    (tmp_path / "processes").rmdir()
    with caplog.at_level(logging.ERROR):
        book.write(RECORD)
    assert "no record of this start could be written" in caplog.text


def test_equal_configurations_have_one_hash() -> None:
    assert config_hash({"a": 1, "b": (1, 2)}) == config_hash({"b": (1, 2), "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
