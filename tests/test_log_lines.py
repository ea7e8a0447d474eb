"""The log: lines that are safe to print and to parse, and a writer that never makes the loop wait."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator

import pytest

from procguard import log_lines
from procguard.log_lines import LineWriter, TextLines, printable, written_log

LOGGER = logging.getLogger("procguard.lighthouse.test")


class Pipe:
    """What is written into it is read when the test says so."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def end_reading(self) -> None:
        if self.reading >= 0:
            os.close(self.reading)
            self.reading = -1

    def text(self) -> str:
        """All that was written, which nobody can add to any more."""
        os.close(self.writing)
        with open(self.reading, encoding="utf-8", closefd=False) as file:
            return file.read()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.end_reading()


def test_text_has_time_level_and_message(pipe: Pipe) -> None:
    with written_log("text", "info", pipe.writing):
        LOGGER.debug("not this one")
        LOGGER.warning("Replica %s failed", "2", extra={"fields": {"job_id": "train"}})
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} WARNING Replica 2 failed\n", pipe.text(), re.ASCII
    )


def test_json_has_the_fields_that_the_event_has(pipe: Pipe) -> None:
    with written_log("json", "debug", pipe.writing):
        LOGGER.debug("one\ntwo", extra={"fields": {"job_id": "train", "replica_id": ""}})
        try:
            raise ValueError("three")
        except ValueError:
            LOGGER.exception("four")
    first, second = map(json.loads, pipe.text().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("ts"), re.ASCII)
    assert first == {"level": "debug", "event": "one\ntwo", "job_id": "train"}
    assert second["traceback"].endswith("ValueError: three")


def test_a_traceback_follows_its_line(pipe: Pipe) -> None:
    with written_log("text", "info", pipe.writing):
        try:
            raise ValueError("three")
        except ValueError:
            LOGGER.exception("four")
    lines = pipe.text().splitlines()
    assert lines[0].endswith("ERROR   four")
    assert lines[-1] == "ValueError: three"


def test_a_name_neither_ends_a_line_nor_steers_a_terminal(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writing)
    writer.setFormatter(TextLines())
    said = {"levelname": "INFO", "msg": "Replica %s joined", "args": ("a\n\x1b[2J\ud800é",)}
    writer.handle(logging.makeLogRecord(said))  # not through a logger: a test's report takes no such name
    writer.close()
    (line,) = pipe.text().splitlines()
    assert line.endswith(r"Replica a\n\x1b[2J\ud800é joined")
    assert printable("é plain") == "é plain"


def test_nobody_waits_for_a_log_that_is_not_read(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_lines, "LINES_WAITING_MAX", 10)
    writer = LineWriter(pipe.writing)
    writer.setFormatter(TextLines())
    line = logging.makeLogRecord({"levelname": "INFO", "msg": "x" * 32_768})
    for _ in range(100):  # a pipe holds two of them, the queue ten
        writer.handle(line)
    seen = b""
    while b"lines of this log are lost: nobody was reading it" not in seen:
        seen = seen[-100:] + os.read(pipe.reading, 1 << 20)
        writer.handle(line)

    for _ in range(100):
        writer.handle(line)
    with monkeypatch.context() as impatient:
        impatient.setattr(log_lines, "LAST_LINES_S", 0.01)
        writer.close()
    pipe.end_reading()
    writer.close()
    os.close(pipe.writing)


def test_a_reader_that_is_gone_does_not_matter(pipe: Pipe) -> None:
    pipe.end_reading()
    with written_log("text", "info", pipe.writing):
        LOGGER.info("nobody hears this")
    os.close(pipe.writing)


def test_a_descriptor_that_somebody_made_non_blocking(pipe: Pipe) -> None:
    os.set_blocking(pipe.writing, False)
    seen = b""
    with written_log("text", "info", pipe.writing):
        for _ in range(10):
            LOGGER.info("%s", "x" * 32_768)
        while seen.count(b"\n") < 10:
            seen += os.read(pipe.reading, 1 << 20)
    assert len(pipe.text()) == 0
