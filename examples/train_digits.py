"""Train a small classifier on handwritten digits, and survive the death of any replica.

Start a lighthouse, then as many replicas as you like, each in a shell of its own::

    procguard-lighthouse --port 29510
    PROCGUARD_LIGHTHOUSE=localhost:29510 REPLICA_GROUP_ID=0 python examples/train_digits.py
    PROCGUARD_LIGHTHOUSE=localhost:29510 REPLICA_GROUP_ID=1 python examples/train_digits.py

Kill one with ``kill -9`` and start it again: the others go on at once, the newcomer takes over their weights.
The five places that make it so are numbered. ``kill -USR1``, which a batch system such as Slurm can send
before the time is up, ends all replicas after the same step, with the same weights.

In a replica group of several ranks each rank trains a model of its own, as the members of an ensemble: it
averages gradients with the same rank of the other groups, and a step counts if it went well on every rank.

The data are scikit-learn's 1,797 real images of digits; the model is written out in numpy, so that nothing
but the train loop needs explaining.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import time
import zlib
from datetime import timedelta
from typing import Any, BinaryIO

import click
import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from procguard.adapters.collective import RingProcessGroup
from procguard.client import Manager
from procguard.errors import ProcGuardError
from procguard.messages import Notice

Array = npt.NDArray[np.float64]

BATCH = 32
HIDDEN = 48
LEARNING_RATE = 0.2
TEST_SHARE = 5
"""Every fifth image is for the test."""
SAY_EVERY_STEPS = 100
END_EVERY_STEPS = 50
"""Who was asked to end does so after a round number of steps: the ranks of a group hear of it apart."""


def train(manager: Manager, model: Model, steps: int, step_time_s: float, journal: Journal) -> None:
    data = Digits()
    own_share = zlib.crc32(f"{manager.replica_id()}/{os.environ.get('RANK', '0')}".encode())
    asked_to_end: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: asked_to_end.append(number))
    while manager.current_step() < steps:
        manager.start_quorum()  # 1: who is alive? runs beside the computation
        gradients = model.gradients(*data.batch(manager.current_step(), own_share))
        time.sleep(step_time_s)
        last = np.array([float(len(asked_to_end))])  # averaged like a gradient: if one is asked, all know
        manager.allreduce([*gradients.values(), last]).wait()  # 2: ends at once if a peer dies
        committed = manager.should_commit()  # 3: did all of it go well?
        if committed:
            model.apply(gradients)
        journal.step(manager, committed)
        if committed and manager.current_step() % SAY_EVERY_STEPS == 0:
            say = f"step {manager.current_step()}: accuracy {model.accuracy(*data.test):.3f}"
            click.echo(f"{say}, {manager.num_participants()} replicas")
        if committed and last.any() and manager.current_step() % END_EVERY_STEPS == 0:
            break
    accuracy, digest = model.accuracy(*data.test), model.digest()
    journal.write("end", step=manager.current_step(), accuracy=accuracy, digest=digest)
    click.echo(f"done at step {manager.current_step()}: accuracy {accuracy:.3f}, weights {digest}")


class Digits:
    """The images, split: 64 pixels of 0..1 each, and the digit 0..9."""

    def __init__(self) -> None:
        pixels, digits = load_digits(return_X_y=True)
        is_test = np.arange(len(digits)) % TEST_SHARE == 0
        self.train: tuple[Array, Array] = (pixels[~is_test] / 16, digits[~is_test])
        self.test: tuple[Array, Array] = (pixels[is_test] / 16, digits[is_test])

    def batch(self, step: int, share: int) -> tuple[Array, Array]:
        """What a replica learns from in a step: other images than the others, and always the same."""
        pixels, digits = self.train
        chosen = np.random.default_rng((step, share)).choice(len(digits), BATCH, replace=False)
        return pixels[chosen], digits[chosen]


class Model:
    """64 pixels -> hidden layer -> 10 digits, with its gradient by hand."""

    def __init__(self, seed: int | None) -> None:
        rng = np.random.default_rng(seed)
        self.weights: dict[str, Array] = {
            "w1": rng.normal(0, 0.15, (64, HIDDEN)),
            "b1": np.zeros(HIDDEN),
            "w2": rng.normal(0, 0.15, (HIDDEN, 10)),
            "b2": np.zeros(10),
        }

    def forward(self, pixels: Array) -> tuple[Array, Array]:
        w = self.weights
        hidden = np.maximum(pixels @ w["w1"] + w["b1"], 0)
        scores = hidden @ w["w2"] + w["b2"]
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        return hidden, odds / odds.sum(axis=1, keepdims=True)

    def gradients(self, pixels: Array, digits: Array) -> dict[str, Array]:
        hidden, error = self.forward(pixels)
        error[np.arange(len(digits)), digits] -= 1
        error /= len(digits)
        back = (error @ self.weights["w2"].T) * (hidden > 0)
        return {
            "w1": pixels.T @ back,
            "b1": back.sum(axis=0),
            "w2": hidden.T @ error,
            "b2": error.sum(axis=0),
        }

    def apply(self, gradients: dict[str, Array]) -> None:
        for name, gradient in gradients.items():
            self.weights[name] -= LEARNING_RATE * gradient

    def accuracy(self, pixels: Array, digits: Array) -> float:
        return float((self.forward(pixels)[1].argmax(axis=1) == digits).mean())

    def digest(self) -> str:
        """Equal for equal weights, to the last bit."""
        content = b"".join(self.weights[name].tobytes() for name in sorted(self.weights))
        return hashlib.sha256(content).hexdigest()[:16]

    def load(self, weights: dict[str, Array]) -> None:
        self.weights = {name: np.array(weight) for name, weight in weights.items()}


class Journal:
    """What happened when, as JSON lines for a program that watches; ``at`` is monotonic seconds."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file

    def write(self, event: str, **facts: Any) -> None:
        if self._file:
            self._file.write(json.dumps({"at": time.monotonic(), "event": event, **facts}).encode() + b"\n")
            self._file.flush()  # what was written must be there after a kill -9

    def step(self, manager: Manager, committed: bool) -> None:
        quorum = manager.state_dict()["committed_in"]
        self.write("step", step=manager.current_step(), committed=committed, quorum=quorum)

    def told(self, notice: Notice) -> None:
        self.write("told", replica_id=notice.replica_id, cause=str(notice.cause), left=notice.left)


@click.command()
@click.option("--steps", default=2000, show_default=True, help="How many steps to train.")
@click.option(
    "--step-time-ms",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Idle time a step, as of a larger model.",
)
@click.option("--min-replicas", default=1, show_default=True, help="Fewer than this commit no step.")
@click.option(
    "--timeout",
    type=click.IntRange(1, 1_000_000),
    default=60,
    show_default=True,
    help="Seconds a collective may take.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), help="Of the first weights; healing makes them alike anyway."
)
@click.option("--journal", type=click.File("ab"), help="Write what happens to this file as JSON lines.")
def main(
    *,
    steps: int,
    step_time_ms: int,
    min_replicas: int,
    timeout: int,
    seed: int | None,
    journal: BinaryIO | None,
) -> None:
    """Train a classifier of handwritten digits together with the other replicas."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    model, diary = Model(seed), Journal(journal)
    try:
        manager = Manager(  # 4: join, and say how to take over and give out the weights
            pg=RingProcessGroup(),
            load_state_dict=model.load,
            state_dict=lambda: model.weights,
            min_replica_size=min_replicas,
            timeout=timedelta(seconds=timeout),
        )
        manager.on_failure(diary.told)
        train(manager, model, steps, step_time_ms / 1000, diary)
        manager.shutdown()  # 5: leave, so that nobody waits
    except ProcGuardError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
