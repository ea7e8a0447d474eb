"""The shell around a group's server: opened when wanted, and where."""

from __future__ import annotations

from math import inf

from procguard.adapters.base import Frame
from procguard.client.group_host import GroupHost
from procguard.client.group_words import GROUP, GroupWaiting, RankAsks, Verdict, Vote
from procguard.messages import AnswerWanted, QuorumWaiting, Rank, Reason
from tests.client.fakes import EPOCH, TOKEN, enrol, life, participant


class FakeServer:
    """A place whose ranks are the test's."""

    def __init__(self, host: str) -> None:
        self.address = f"{host}:1"
        self.arrived: list[Frame] = []
        self.answers: list[tuple[bytes, object]] = []
        self.is_closed = False

    def fileno(self) -> int:
        return 99

    def has_input(self) -> bool:
        return bool(self.arrived)

    def drain(self, count_max: int) -> list[Frame]:
        taken, self.arrived = self.arrived[:count_max], self.arrived[count_max:]
        return taken

    def send(self, peer: bytes, frame: bytes) -> bool:
        self.answers.append((peer, GROUP.decode(frame)))
        return True

    def close(self) -> None:
        self.is_closed = True


class Stage:
    def __init__(self) -> None:
        self.opened: list[FakeServer] = []
        self.host = GroupHost(self._open)

    def _open(self, host: str) -> FakeServer:
        self.opened.append(FakeServer(host))
        return self.opened[-1]

    def serve(self) -> FakeServer:
        plain = enrol()
        hello = plain.hello._replace(group_world_size=2)
        said = self.host.enrol(plain._replace(hello=hello, serve_at="node0"))
        assert said.hello == hello._replace(group_address="node0:1")
        return self.opened[-1]


ASKS = RankAsks(1, 60.0, EPOCH, participant("a", round=1, ranks=(Rank("", ""),)), None)


def test_a_group_of_one_rank_is_served_nowhere() -> None:
    stage = Stage()
    assert stage.host.enrol(enrol()) == enrol()
    assert (stage.opened, stage.host.fds(), stage.host.next_deadline()) == ([], (), inf)
    assert stage.host.turn(0.0) == []
    assert stage.host.from_lighthouse(QuorumWaiting(Reason.SETTLING, 0, 1, ())) == []
    stage.host.close()


def test_requests_go_to_the_lighthouse_and_answers_to_the_ranks() -> None:
    stage = Stage()
    server = stage.serve()
    assert stage.host.fds() == (99,)
    server.arrived.append(Frame(b"one", GROUP.encode(ASKS)))
    assert stage.host.next_deadline() == 0.0
    assert stage.host.turn(1.0) == [AnswerWanted(TOKEN, life(1), 1)]
    assert 1.0 < stage.host.next_deadline() < 2.0
    stage.host.turn(2.0)
    assert server.answers == [(b"one", GroupWaiting(1, (0,), None))]
    stage.host.close()
    assert server.is_closed


def test_what_is_no_word_of_a_rank_is_dropped() -> None:
    stage = Stage()
    server = stage.serve()
    votes = [GROUP.encode(Vote(rank, life(1), 1, True)) for rank in (0, 1)]
    noise = [b"garbage", GROUP.encode(Verdict(life(1), 1, True))]
    server.arrived += [Frame(b"one", frame) for frame in (*noise, votes[0], *noise, votes[1])]
    assert stage.host.turn(1.0) == []
    assert [answer for _, answer in server.answers] == [Verdict(life(1), 1, True)] * 2


def test_enrolled_again_it_serves_at_the_same_place() -> None:
    stage = Stage()
    stage.serve()
    stage.serve()
    assert len(stage.opened) == 1
