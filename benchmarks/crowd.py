"""Many members in one process, without trainers: what a lighthouse sees of a large job.

Each has a connection of its own and, where it listens, a second one for notices, as a real listener has. All
share one ZeroMQ context, because a process for each of two thousand would measure the machine's scheduler.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import zmq

from procguard.adapters.zmq_key_files import read_member
from procguard.adapters.zmq_keys import MemberKeys
from procguard.adapters.zmq_sockets import CLIENT, Context, Socket, open_socket, raise_open_files_limit
from procguard.codec import decode, encode
from procguard.messages import (
    Heartbeat,
    Hello,
    Message,
    Phase,
    Process,
    Resync,
    SnapshotRequest,
    Welcome,
    listener_topic,
    notice_topic,
)

JOB_ID = "default"
INTERVAL_S = 0.1
"""Between two heartbeats of one member."""
ANSWER_TIMEOUT_S = 60.0
JOIN_AT_ONCE = 100
NAP_S_MAX = 0.01
SEASON_BEATS = 2 * 256
SEASON_SPEED = 5
QUEUE_ENDLESS = 0


class CrowdMember:
    """One connection that speaks for a member; after ``listen`` two."""

    def __init__(
        self, context: Context, address: str, replica_id: str, keys: MemberKeys | None = None
    ) -> None:
        self._context = context
        self._keys = keys.client_options() if keys else None
        self._host = address.rpartition(":")[0]
        self.replica_id = replica_id
        self.dealer = self._connect(zmq.DEALER, address)
        self.sub: Socket | None = None
        self._aside = False
        self.renew()

    def renew(self) -> None:
        """Be another process from now on, as the replacement of one that died is."""
        self.token = secrets.token_bytes(16)
        self._topic = b""
        self.welcome: Welcome | None = None
        self.beat = b""
        """Its heartbeat; empty for one that does not beat."""

    def hello(self) -> None:
        process = Process(host="crowd", boot_id="", pid=1, start_time=0)
        self.send(
            Hello(
                job_id=JOB_ID,
                replica_id=self.replica_id,
                token=self.token,
                process=process,
                group_rank=0,
                group_world_size=1,
                group_run="",
                claim=None,
                topic=self._topic,
                group_address="",
                epoch=0,
                min_replicas=0,
                progress_timeout_s=0.0,
            )
        )

    def listen(self) -> None:
        """Hear notices too; the Hello that follows is answered once the subscription stands."""
        assert self.welcome is not None
        if self.sub is not None:
            self.sub.close(linger=0)
        self._topic = listener_topic(secrets.token_bytes(16))
        self.sub = self._connect(zmq.XSUB, f"{self._host}:{self.welcome.notice_port}")
        for topic in (notice_topic(JOB_ID), self._topic):
            self.sub.send(b"\1" + topic)

    def welcomed(self) -> None:
        """Take in the Welcome that answers a Hello."""
        answer = self.answer()
        assert isinstance(answer, Welcome), answer
        self.welcome = answer
        self.beat = encode(
            Heartbeat(
                token=self.token,
                incarnation=answer.incarnation,
                threaded=False,
                stopped=False,
                phase=Phase.COMPUTE,
                progress=1,
                step=1,
            )
        )

    def send(self, message: Message) -> None:
        self.dealer.send(encode(message))

    def send_beat(self) -> None:
        """By each of its connections in turn, as a listener does."""
        self._aside = not self._aside and self.sub is not None
        (self.sub if self._aside and self.sub else self.dealer).send(self.beat)

    def answer(self) -> Message:
        """The next answer of the lighthouse."""
        if not self.dealer.poll(int(ANSWER_TIMEOUT_S * 1000)):
            raise TimeoutError(f"{self.replica_id}: no answer for {ANSWER_TIMEOUT_S} s")
        return decode(self.dealer.recv())

    def fall_silent(self) -> None:
        """Lose the connection that hears notices, by which the lighthouse knows that a listener lives."""
        assert self.sub is not None
        self.sub.close(linger=0)
        self.sub = None

    def _connect(self, kind: int, address: str) -> Socket:
        connection = open_socket(self._context, kind, CLIENT | {zmq.SNDHWM: QUEUE_ENDLESS}, self._keys)
        connection.connect(f"tcp://{address}")
        return connection


def crowd_context() -> Context:
    """Room for thousands of sockets."""
    raise_open_files_limit()
    context: Context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, context.get(zmq.SOCKET_LIMIT))
    return context


def join(members: Sequence[CrowdMember], listening: bool) -> None:
    """Become members, some at a time, and with ``listening`` hear notices before this returns."""
    for start in range(0, len(members), JOIN_AT_ONCE):
        some = members[start : start + JOIN_AT_ONCE]
        for member in some:
            member.hello()
        for member in some:
            member.welcomed()
        if listening:
            for member in some:
                member.listen()
                member.hello()
            for member in some:
                member.welcomed()
        for member in members[: start + len(some)]:
            member.dealer.send(member.beat)


class SmoothBeats:
    """Beats of all members, spread evenly over the interval, as those of a large job are."""

    def __init__(self, members: Sequence[CrowdMember], interval_s: float = INTERVAL_S) -> None:
        self._members = members
        self._gap_s = interval_s / max(1, len(members))
        self._started_at = time.monotonic()
        self.sent = 0
        self.latest_s = 0.0
        """How late the most belated beat was sent: beyond an interval, the load was not the one wanted."""

    def due_in(self) -> float:
        """Seconds until the next beat."""
        if not self._members:
            return INTERVAL_S
        return self._started_at + self.sent * self._gap_s - time.monotonic()

    def send_due(self) -> None:
        while (wait_s := self.due_in()) <= 0:
            member = self._members[self.sent % len(self._members)]
            if member.beat:
                member.send_beat()
            self.sent += 1
            self.latest_s = max(self.latest_s, -wait_s)

    def go_on(self, until: Callable[[], bool]) -> None:
        while not until():
            self.send_due()
            time.sleep(min(max(self.due_in(), 0.0), NAP_S_MAX))


def season(members: Sequence[CrowdMember]) -> None:
    """Beat as often as it takes until memory grows no more, in a fifth of the time.

    libzmq keeps the messages of a connection in chunks of 256, and one chunk to spare.
    """
    beats = SmoothBeats(members, INTERVAL_S / SEASON_SPEED)
    beats.go_on(until=lambda: beats.sent >= SEASON_BEATS * len(members))


def flood(members: Sequence[CrowdMember], beats: int) -> tuple[float, float]:
    """Send so many beats of each member as fast as they go; start, and when all had been taken in.

    A connection keeps its order, so the answer to what is sent last says that all before it was read.
    """
    started_at = time.monotonic()
    lines = [(member.dealer.send, member.beat) for member in members]
    for _ in range(beats):
        for send, beat in lines:
            send(beat)
    for member in members:
        member.send(Resync(token=member.token, epoch=0, seq=0))
    for member in members:
        member.answer()
    return started_at, time.monotonic()


def knock(context: Context, address: str, count: int, keys: MemberKeys | None) -> tuple[float, float]:
    """Connect so many times at once; start, and when each connection had got an answer."""
    started_at = time.monotonic()
    strangers = [CrowdMember(context, address, "stranger", keys) for _ in range(count)]
    for stranger in strangers:
        stranger.send(SnapshotRequest(JOB_ID))
    for stranger in strangers:
        stranger.answer()
    ended_at = time.monotonic()
    for stranger in strangers:
        stranger.dealer.close(linger=0)
    return started_at, ended_at


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


@click.command()
@click.argument("address")
@click.argument("names")
@click.argument("count", type=int)
@click.option("--listening", is_flag=True, help="Each member hears notices, on a second connection.")
@click.option("--seasoned", is_flag=True, help="First let libzmq's queues reach their full size.")
@click.option("--flood", "beats", type=int, help="Send so many beats of each member at a word.")
@click.option("--knocking", is_flag=True, help="Be nobody, but connect COUNT times at a word.")
@click.option("--keys", "key_file", type=click.Path(path_type=Path), help="Of a member; all use the same.")
def main(
    *,
    address: str,
    names: str,
    count: int,
    listening: bool,
    seasoned: bool,
    beats: int | None,
    knocking: bool,
    key_file: Path | None,
) -> None:
    """Be COUNT members, called NAMES and a number: beat at 10 Hz until stdin ends, or flood at each line."""
    context = crowd_context()
    keys = read_member(key_file) if key_file else None
    if knocking:
        say(ready=count)
        for _ in sys.stdin:
            started_at, ended_at = knock(context, address, count, keys)
            say(started_at=started_at, ended_at=ended_at)
        return
    members = [CrowdMember(context, address, f"{names}{n:05d}", keys) for n in range(count)]
    join(members, listening)
    if seasoned:
        season(members)
    say(ready=count)
    if beats is not None:
        for _ in sys.stdin:
            started_at, ended_at = flood(members, beats)
            say(started_at=started_at, ended_at=ended_at)
        return
    end = threading.Thread(target=sys.stdin.read, daemon=True)
    end.start()
    smooth = SmoothBeats(members)
    smooth.go_on(until=lambda: not end.is_alive())
    say(sent=smooth.sent, latest_ms=smooth.latest_s * 1000)


if __name__ == "__main__":
    main()
