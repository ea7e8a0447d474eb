"""A fixed share of the codec's fuzzing, and whether it would see what it looks for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest

from fuzz.codec import (
    TURNS,
    Broken,
    Decoder,
    Total,
    decoders,
    judge_message,
    judge_wire,
    payload_of,
    same,
    try_some,
)
from fuzz.mutation import HEAVY, ODD, Mutator, frame_of
from procguard import codec
from procguard.codec import WIRE, Codec
from procguard.messages import Beacon, HelloWanted

REPOSITORY = Path(__file__).parent.parent.parent
SEED = 1
INPUTS = 24_000


def test_a_share_of_the_inputs() -> None:
    chunk = try_some(SEED, 0, INPUTS)
    replays = [
        f"python -m fuzz.codec --seed {SEED} --only {f.number} ({f.decoder}: {f.text})"
        for f in chunk.failures
    ]
    assert not replays
    for name in set(TURNS):
        share = INPUTS * TURNS.count(name) // len(TURNS)
        assert chunk.taken[name] + chunk.refused[name] == share
        assert share // 50 < chunk.taken[name] < share // 4, "mostly wrong, and sometimes right"


def test_an_input_is_the_same_whenever_it_is_made() -> None:
    tried, rng = decoders(), Random()
    made = [payload_of(tried, SEED, number, rng) for number in range(500)]
    others = decoders()
    assert [payload_of(others, SEED, number, Random()) for number in reversed(range(500))] == made[::-1]
    assert len({payload for _, payload in made}) > 450


def test_it_replays_one_input() -> None:
    command = [sys.executable, "-m", "fuzz.codec", "--seed", "1", "--only", "2"]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.startswith("input 2 of seed 1, for wire, ")


# --- it sees what it looks for ------------------------------------------------------------------------


def caught(judge: Callable[[bytes], bool], inputs: int = 8_000) -> str:
    """What the fuzzer says first of a decoder of wire frames."""
    tried = decoders()
    only = dict.fromkeys(TURNS, Decoder(tried["wire"].hostile, judge))
    rng = Random()
    for number in range(inputs):
        _, payload = payload_of(only, SEED, number, rng)
        try:
            judge(payload)
        except Exception as error:  # noqa: BLE001  whatever it is, it is what was looked for
            return f"{type(error).__name__}: {error}"
    return ""


def test_the_real_decoder_is_not_caught() -> None:
    assert not caught(judge_wire, inputs=1_000)


@pytest.mark.parametrize(
    ("check", "mistake"),
    [
        ("_float", float),
        ("_int", lambda value: value),
        ("_bool", lambda value: value),
    ],
    ids=["a number that is none", "an int of any kind", "a bool of any kind"],
)
def test_a_check_that_lets_too_much_through_is_caught(
    monkeypatch: pytest.MonkeyPatch, check: str, mistake: Callable[[Any], Any]
) -> None:
    monkeypatch.setattr(codec, check, mistake)
    careless: Codec[Any] = Codec(1, {number: kind for kind, number in WIRE._numbers.items()})

    def judge(payload: bytes) -> bool:
        taken = judge_message(careless, payload)
        if taken and isinstance(judge_or_text(payload), str):
            raise Broken("it takes what the real one refuses")
        return taken

    assert caught(judge)


def judge_or_text(payload: bytes) -> object:
    try:
        return WIRE.decode(payload)
    except codec.ProtocolError as error:
        return str(error)


def test_another_exception_is_caught() -> None:
    def unguarded(payload: bytes) -> bool:
        with suppress(codec.ProtocolError):
            return bool(WIRE.check(msgpack.unpackb(payload, use_list=False)))
        return False

    assert caught(unguarded)


def test_an_input_that_costs_too_much_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.codec.SLOW_S", 0.0)
    (failure,) = try_some(SEED, 0, 10).failures
    assert failure.text.endswith("s of CPU")


def test_equal_is_not_the_same() -> None:
    assert same(HelloWanted(1), HelloWanted(1))
    assert not same(HelloWanted(1), HelloWanted(True))
    assert not same(Beacon(1, 2), (1, 2))
    assert not same((1, 2), (1, 2, 3))


# --- frames -------------------------------------------------------------------------------------------


def test_the_places_of_a_frame_are_its_values() -> None:
    payload = msgpack.packb([1, ["a", [b"bc", None]], 300])
    values = [msgpack.unpackb(payload[start:end]) for start, end in frame_of(payload).places]
    assert values == [
        1,
        "a",
        b"bc",
        None,
        [b"bc", None],
        ["a", [b"bc", None]],
        300,
        [1, ["a", [b"bc", None]], 300],
    ]


def test_every_mutation_makes_other_frames() -> None:
    frames = [frame_of(WIRE.encode(Beacon(1, 2))), frame_of(WIRE.encode(HelloWanted(3)))]
    mutator, rng = Mutator(frames), Random(SEED)
    made = {mutator.hostile(rng) for _ in range(20_000)}
    assert len(made) > 5_000
    assert any(odd in frame for odd in HEAVY for frame in made)
    assert all(any(odd in frame for frame in made) for odd in ODD)


def test_growth_is_counted_from_the_end_of_each_workers_first_chunk() -> None:
    total = Total()
    chunk = try_some(SEED, 0, 10)
    for pid, rss_mib in ((1, 50.0), (2, 60.0), (1, 53.0), (2, 61.0)):
        total.add(chunk._replace(pid=pid, rss_mib=rss_mib))
    assert total.rss_growth_mib == 4
    report = total.report(1.0)
    assert [target.met for target in report.targets] == [True, True]
