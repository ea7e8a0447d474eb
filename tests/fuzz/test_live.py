"""The attack on a running lighthouse, in small: harm is looked for, times mean nothing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from random import Random

import zmq

from fuzz import zmtp

REPOSITORY = Path(__file__).parent.parent.parent
DEADLINE_S = 120
SMALL = ("--frames=20000", "--strangers=100", "--storm=200", "--subscribers=50")
TIMES = (
    "p99 under the flood, later than in quiet, ms",
    "p99 the same, later than at the floor, ms",
    "p50 the same",
    "frames/s of the flood",
)


def test_a_small_attack_does_no_harm() -> None:
    command = [sys.executable, "-m", "fuzz.live", *SMALL, "--kills=1", "--members=2", "--rate=2000", "--json"]
    ran = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert ran.stdout, ran.stderr
    report = json.loads(ran.stdout)
    targets = {target["name"]: target for target in report["targets"]}
    assert set(TIMES) < set(targets)
    missed = [target for name, target in targets.items() if name not in TIMES and not target["met"]]
    assert not missed
    assert {case["name"] for case in report["cases"]} >= {"crash, quiet", "crash, under the flood"}


def test_what_strangers_say_is_mostly_no_handshake() -> None:
    rng = Random(1)
    said = {zmtp.stranger(rng) for _ in range(500)}
    assert len(said) > 200
    assert any(words.startswith(zmtp.GREETING) for words in said)
    assert any(not words.startswith(zmtp.SIGNATURE) for words in said)


def test_what_guests_say_is_of_many_kinds() -> None:
    rng = Random(1)
    assert len({zmtp.guest(rng) for _ in range(500)}) > 400


def test_a_long_frame_says_so() -> None:
    assert zmtp.frame(b"x" * 255) == b"\x00\xff" + b"x" * 255
    assert zmtp.frame(b"x" * 256) == b"\x02" + (256).to_bytes(8, "big") + b"x" * 256
    assert len(zmtp.GREETING) == 64


def test_a_handmade_subscriber_is_taken_for_one() -> None:
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        publisher.linger = 0
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            zmtp.shake_hands(stranger, b"SUB")
            stranger.sendall(zmtp.frame(b"\1job\0"))
            assert publisher.poll(30_000)
            assert publisher.recv() == b"\1job\0"
