"""The log of notices: numbered batches, given again on demand, bounded."""

from __future__ import annotations

import pytest

from procguard.lighthouse import notices as module
from procguard.lighthouse.notices import BATCHES_MAX, NoticeLog
from procguard.messages import Cause, CauseKind, Incarnation, Notice

EPOCH = 7
DEAD = Cause(CauseKind.PROCESS_EXIT, signal=9)


def notice(replica_id: str, number: int = 1) -> Notice:
    return Notice(replica_id, Incarnation(EPOCH, number), DEAD, step=3)


def log_of(*batches: tuple[Notice, ...]) -> NoticeLog:
    log = NoticeLog()
    for now, batch in enumerate(batches, 1):
        for one in batch:
            log.add(one)
        assert log.flush(EPOCH, float(now)) is not None
    return log


def test_nothing_happened_nothing_to_publish() -> None:
    log = NoticeLog()
    assert log.flush(EPOCH, 1.0) is None
    assert log.seq == 0


def test_all_of_one_step_leave_in_one_numbered_batch() -> None:
    log = NoticeLog()
    log.add(notice("a"))
    log.add(notice("b"))
    assert log.flush(EPOCH, 1.0) == (EPOCH, 1, (notice("a"), notice("b")))
    assert log.flush(EPOCH, 2.0) is None
    log.add(notice("c"))
    assert log.flush(EPOCH, 3.0) == (EPOCH, 2, (notice("c"),))
    assert log.seq == 2


def test_what_was_missed_is_given_again_in_order() -> None:
    log = log_of((notice("a"), notice("b")), (notice("c"),), (notice("a", 2),))
    assert log.since(1, EPOCH, same_epoch=True) == (EPOCH, 3, (notice("c"), notice("a", 2)))
    assert log.since(0, EPOCH, same_epoch=True).notices == (
        notice("a"),
        notice("b"),
        notice("c"),
        notice("a", 2),
    )
    assert log.since(3, EPOCH, same_epoch=True) == (EPOCH, 3, ())


def test_a_reader_of_another_epoch_gets_the_last_failure_of_each() -> None:
    log = log_of((notice("a"), notice("b")), (notice("a", 2),))
    assert log.since(2, EPOCH, same_epoch=False) == (EPOCH, 2, (notice("b"), notice("a", 2)))


def test_a_reader_ahead_of_us_gets_the_last_failure_of_each() -> None:
    log = log_of((notice("a"),))
    assert log.since(99, EPOCH, same_epoch=True) == (EPOCH, 1, (notice("a"),))


def test_what_is_not_published_yet_comes_with_its_batch_only() -> None:
    log = log_of((notice("a"),))
    log.add(notice("b"))
    assert log.since(0, EPOCH, same_epoch=True) == (EPOCH, 1, (notice("a"),))


def test_beyond_the_log_the_last_failure_of_each_is_all_that_matters() -> None:
    log = log_of(*[(notice(f"r{number % 50:02d}", number),) for number in range(BATCHES_MAX + 50)])
    assert len(log.since(50, EPOCH, same_epoch=True).notices) == BATCHES_MAX
    beyond = log.since(49, EPOCH, same_epoch=True)
    assert beyond.seq == BATCHES_MAX + 50
    assert sorted(n.replica_id for n in beyond.notices) == [f"r{number:02d}" for number in range(50)]
    assert min(n.incarnation.number for n in beyond.notices) == BATCHES_MAX


def test_the_fallen() -> None:
    log = log_of((notice("a"),), (notice("a", 5),))
    assert log.fallen("a") == notice("a", 5)
    assert log.fallen("b") is None
    log.add(notice("b"))
    assert log.fallen("b") == notice("b"), "known at once, published or not"


def test_the_fallen_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FALLEN_MAX", 3)
    log = log_of((notice("a"), notice("b"), notice("c")), (notice("a", 2),), (notice("d"),))
    assert [name for name in "abcd" if log.fallen(name)] == ["a", "c", "d"], "the oldest notice goes first"


def test_the_newest_come_first_and_no_more_than_asked() -> None:
    log = log_of((notice("a"), notice("b")), (notice("c"), notice("d")), (notice("e"),))
    assert [n.replica_id for _, n in log.newest(4)] == ["e", "d", "c", "b"]
    assert [when for when, _ in log.newest(3)] == [3.0, 2.0, 2.0]
    assert log.newest(0) == []
