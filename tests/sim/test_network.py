"""The network: delays, retransmission, cuts, partitions, and what is published."""

from __future__ import annotations

from random import Random

import pytest

from procguard.adapters.base import Frame, Subscribed, Unsubscribed
from procguard.sim.clock import VirtualClock
from procguard.sim.network import DOWN, UP, LighthouseEnd, MemberEnd, Network, Path

DELAY_S = 0.01


class Stage:
    """A lighthouse and members that note what arrives, and when."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.network = Network(self.clock, Random(1))
        self.heard: list[tuple[float, object]] = []
        self.lighthouse = self.open()

    def open(self) -> LighthouseEnd:
        self.lighthouse = self.network.open(self._drain)
        return self.lighthouse

    def path(self, loss: float = 0.0, jitter_s: float = 0.0) -> Path:
        return Path(DELAY_S, jitter_s, loss, Random(2))

    def member(self, path: Path | None = None) -> MemberEnd:
        return MemberEnd(self.network, path or self.path(), lambda: None)

    def frames(self) -> list[bytes]:
        return [what.payload for _, what in self.heard if isinstance(what, Frame)]

    def _drain(self) -> None:
        self.heard += [(round(self.clock.now, 6), what) for what in self.lighthouse.drain(100)]


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_a_frame_takes_the_paths_delay_and_what_was_said_before_connecting_is_kept(stage: Stage) -> None:
    member = stage.member()
    member.send(b"early")
    stage.clock.run_until(1.0)
    member.send(b"later")
    stage.clock.run_until(2.0)
    assert [(when, what.payload) for when, what in stage.heard] == [(0.04, b"early"), (1.01, b"later")]  # type: ignore[attr-defined]


def test_frames_of_one_connection_keep_their_order_and_those_of_two_do_not(stage: Stage) -> None:
    slow, fast = stage.member(stage.path(jitter_s=0.5)), stage.member()
    stage.clock.run_until(3.0)
    for number in range(50):
        slow.send(b"slow %d" % number)
        fast.send(b"fast %d" % number)
    stage.clock.run_until(10.0)
    arrived = stage.frames()
    assert [f for f in arrived if f[:4] == b"slow"] == [b"slow %d" % number for number in range(50)]
    assert arrived.index(b"fast 49") < arrived.index(b"slow 10")


def test_a_lost_packet_comes_200_ms_later_and_what_follows_waits_behind_it(stage: Stage) -> None:
    path = stage.path()
    member = stage.member(path)
    stage.clock.run_until(1.0)
    path.blocked[UP] = 1
    member.send(b"first")
    path.blocked[UP] = 0
    stage.clock.run_until(1.1)
    member.send(b"second")
    stage.clock.run_until(2.0)
    assert [(when, what.payload) for when, what in stage.heard] == [(1.21, b"first"), (1.21, b"second")]  # type: ignore[attr-defined]


def test_retransmission_backs_off_by_doubling(stage: Stage) -> None:
    path = stage.path()
    member = stage.member(path)
    stage.clock.run_until(1.0)
    path.blocked[UP] = 1
    member.send(b"at last")
    stage.clock.run_until(2.5)  # sent again at 1.2, 1.6, 2.4
    path.blocked[UP] = 0
    stage.clock.run_until(10.0)
    assert stage.heard == [(4.01, Frame(stage.heard[0][1].peer, b"at last"))]  # type: ignore[attr-defined]


def test_a_partition_has_a_direction(stage: Stage) -> None:
    path = stage.path()
    member = stage.member(path)
    stage.clock.run_until(1.0)
    path.blocked[DOWN] = 1
    member.send(b"up")
    (peer,) = stage.lighthouse.connections
    assert stage.lighthouse.send(peer, b"down")
    stage.clock.run_until(2.0)
    assert stage.frames() == [b"up"]
    assert member.receive(10) == []


def test_a_cut_loses_what_was_under_way_and_the_member_connects_anew(stage: Stage) -> None:
    member = stage.member()
    stage.clock.run_until(1.0)
    (connection,) = stage.lighthouse.connections.values()
    member.send(b"lost")
    stage.lighthouse.send(connection.peer, b"lost too")
    connection.cut(0.0, 0.0)
    stage.clock.run_until(2.0)
    member.send(b"anew")
    stage.clock.run_until(3.0)
    assert stage.frames() == [b"anew"]
    assert member.receive(10) == []
    assert not stage.lighthouse.send(connection.peer, b"to nobody")
    assert list(stage.lighthouse.connections) != [connection.peer]


def test_what_the_lighthouse_had_accepted_goes_with_the_connection() -> None:
    clock = VirtualClock()
    network = Network(clock, Random(1))
    lighthouse = network.open(lambda: None)
    member = MemberEnd(network, Path(DELAY_S, 0.0, 0.0, Random(2)), lambda: None)
    member.send(b"accepted")
    clock.run_until(1.0)
    (connection,) = lighthouse.connections.values()
    connection.cut(0.0, 0.0)
    assert lighthouse.drain(10) == []
    assert network.weather["frames lost though accepted"] == 1


def test_notices_reach_only_who_has_subscribed_by_then(stage: Stage) -> None:
    early, late = stage.member(), stage.member()
    early.listen(29511, [b"train\0", b"\0early"])
    stage.clock.run_until(1.0)
    late.listen(29511, [b"train\0"])
    stage.lighthouse.publish(b"train\0first")
    stage.clock.run_until(2.0)
    stage.lighthouse.publish(b"train\0second")
    stage.lighthouse.publish(b"train2\0other")
    stage.clock.run_until(3.0)
    assert early.notices(10) == [b"train\0first", b"train\0second"]
    assert late.notices(10) == [b"train\0second"]
    topics = [what.topic for _, what in stage.heard if isinstance(what, Subscribed)]
    assert topics == [b"\0early", b"train\0"], "the second holder of a topic is no news"


def test_a_published_frame_may_be_lost(stage: Stage) -> None:
    member = stage.member()
    member.listen(29511, [b"t"])
    stage.clock.run_until(1.0)
    stage.lighthouse.notice_loss = 0.5
    for number in range(100):
        stage.lighthouse.publish(b"t%d" % number)
    stage.clock.run_until(2.0)
    assert 20 < len(member.notices(100)) < 80


def test_a_process_that_ends_hangs_up_after_its_last_word_and_a_machine_that_vanishes_does_not(
    stage: Stage,
) -> None:
    ending, vanishing = stage.member(), stage.member(gone := stage.path())
    for member, topic in ((ending, b"\0ending"), (vanishing, b"\0vanishing")):
        member.listen(29511, [topic])
    stage.clock.run_until(1.0)
    stage.heard.clear()
    ending.send(b"last word")
    ending.close()
    gone.vanished = True
    vanishing.close()
    stage.clock.run_until(30.0)
    assert [type(what) for _, what in stage.heard] == [Frame, Unsubscribed]
    assert stage.heard[1][1] == Unsubscribed(b"\0ending")


def test_a_lighthouse_that_was_restarted_is_found_again(stage: Stage) -> None:
    member = stage.member()
    stage.clock.run_until(1.0)
    stage.network.kill_lighthouse(0.0)
    stage.clock.run_until(2.0)
    member.send(b"kept")
    stage.clock.run_until(3.0)
    assert stage.frames() == []
    stage.open()
    stage.clock.run_until(4.0)
    assert stage.frames() == [b"kept"]
