"""Two replicas train a small CNN on handwritten digits; at step 3 replica 0 ends, and the other goes on.

The README beside this file says how to run it. The five places that make the train loop fault tolerant are
numbered; the rest is a train loop of PyTorch like any other, and the ways in which replica 0 can end. The
images are the 1,797 real ones that come with scikit-learn.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, BinaryIO

import click
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from procguard import status
from procguard.adapters.torch import (
    DistributedDataParallel,
    DistributedSampler,
    Manager,
    Optimizer,
    ProcessGroupGloo,
)
from procguard.env import TrainerSettings
from procguard.errors import ProcGuardError
from procguard.messages import MemberState, Notice

BATCH = 32
LEARNING_RATE = 0.05
MOMENTUM = 0.9
TEST_SHARE = 5
"""Every fifth image is for the test."""
ENDING_GROUP = 0
"""The replica group that ends."""
GATHER_TIMEOUT_S = 60.0
"""Who was started in another shell has so long to come; then the others begin without it."""
ASK_EVERY_S = 0.1

Batch = tuple[torch.Tensor, torch.Tensor]


def train(manager: Manager, model: nn.Module, optimizer: Optimizer, steps: int, replica: Replica) -> None:
    for images, labels in replica.batches():
        optimizer.zero_grad()  # 3: who is alive? runs beside the computation
        loss = nn.functional.cross_entropy(model(images), labels)
        replica.compute()
        if replica.ends(manager):
            return
        began, step = time.monotonic(), manager.current_step()
        loss.backward()  # 4: averages the gradients; ends at once if a peer dies
        waited_s = time.monotonic() - began
        optimizer.step()  # 5: on all replicas, or on none
        replica.report(manager, step, loss.item(), waited_s)
        if manager.current_step() >= steps:
            return


def cnn() -> nn.Sequential:
    """8 x 8 pixels -> 10 digits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


class Replica:
    """One replica group: its share of the images, how it ends, and what it says on the way.

    Args:
        how: leave, kill, stop, wedge or none.
        at_step: after so many steps; later, if not all groups take part by then.
        step_time_s: idle time a step, as of a larger model.
        journal: takes what happens as JSON lines; ``at`` is monotonic seconds.
    """

    def __init__(self, how: str, at_step: int, step_time_s: float, journal: BinaryIO | None) -> None:
        found = TrainerSettings.read()
        self.group = found.replica_group_id or 0
        self._groups = found.num_replica_groups or 2
        self._job_id = found.job_id or "default"
        self._how = how if self.group == ENDING_GROUP else "none"
        self._at_step = at_step
        self._step_time_s = step_time_s
        self._journal = journal
        pixels, digits = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
        labels = torch.tensor(digits)
        is_test = torch.arange(len(labels)) % TEST_SHARE == 0
        self._train = TensorDataset(images[~is_test], labels[~is_test])
        self._test = images[is_test], labels[is_test]

    def batches(self) -> Iterator[Batch]:
        """Of this replica's own share, without end."""
        sampler = DistributedSampler(self._train, self.group, self._groups)
        loader = DataLoader(self._train, BATCH, sampler=sampler, drop_last=True)
        epoch = 0
        while True:
            sampler.set_epoch(epoch)
            yield from loader
            epoch += 1

    def gather(self) -> None:
        """Wait until the lighthouse knows all groups, so that the first step is everybody's."""
        lighthouse = status.find(None)
        until = time.monotonic() + GATHER_TIMEOUT_S
        while time.monotonic() < until:
            members = [
                m for job in status.ask(lighthouse, self._job_id, GATHER_TIMEOUT_S).jobs for m in job.members
            ]
            if sum(member.state is MemberState.ALIVE for member in members) >= self._groups:
                return
            time.sleep(ASK_EVERY_S)

    def compute(self) -> None:
        time.sleep(self._step_time_s)

    def ends(self, manager: Manager) -> bool:
        """End this replica, if that is due: in the middle of a step, so that the others wait for it in their
        all-reduce. True: leave the train loop."""
        how, step = self._how, manager.current_step()
        if how == "none" or step < self._at_step or manager.num_participants() < self._groups:
            return False
        self._how = "none"
        self.say(f"step {step}: {how}")
        self.write("ending", step=step, how=how)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)  # after a SIGCONT it heals, and goes on
        elif how == "wedge":
            threading.Event().wait()  # alive, its heartbeats too
        return how == "leave"

    def report(self, manager: Manager, before: int, loss: float, waited_s: float) -> None:
        """Say how the step went."""
        step, count = manager.current_step(), manager.num_participants()
        verdict = f"loss {loss:.3f}" if step > before else "not committed, trying again"
        self.say(
            f"step {step}: {verdict}, {count} replicas, backward and all-reduce {waited_s * 1000:.0f} ms"
        )
        self.write("step", step=step, committed=step > before, loss=loss, replicas=count)

    def told(self, notice: Notice) -> None:
        """A peer is over; on the failure thread."""
        self.write("told", replica_id=notice.replica_id, cause=str(notice.cause), left=notice.left)

    def conclude(self, manager: Manager, model: nn.Module) -> None:
        """Test what was learned."""
        images, labels = self._test
        with torch.no_grad():
            accuracy = (model(images).argmax(dim=1) == labels).float().mean().item()
        weights = b"".join(weight.numpy().tobytes() for weight in model.state_dict().values())
        digest = hashlib.sha256(weights).hexdigest()[:16]
        self.say(f"done at step {manager.current_step()}: accuracy {accuracy:.3f}, weights {digest}")
        self.write("end", step=manager.current_step(), accuracy=accuracy, weights=digest)

    def say(self, text: str) -> None:
        click.echo(f"[replica {self.group}] {text}")

    def write(self, event: str, **facts: Any) -> None:
        if self._journal:
            self._journal.write(
                json.dumps({"at": time.monotonic(), "event": event, **facts}).encode() + b"\n"
            )
            self._journal.flush()  # what was written must be there after a kill -9


@click.command()
@click.option(
    "--how",
    type=click.Choice(["leave", "kill", "stop", "wedge", "none"]),
    default="leave",
    show_default=True,
    help="How replica group 0 ends: in good order, by SIGKILL, by SIGSTOP, or alive without any progress.",
)
@click.option("--at-step", type=click.IntRange(min=1), default=3, show_default=True, help="When it ends.")
@click.option("--steps", type=click.IntRange(min=1), default=60, show_default=True, help="To be trained.")
@click.option(
    "--step-time-ms", type=click.IntRange(min=0), default=250, show_default=True, help="Idle, a step."
)
@click.option("--timeout", default=10.0, show_default=True, help="Seconds a collective may take.")
@click.option(
    "--progress-timeout",
    default=2.0,
    show_default=True,
    help="Seconds a step may compute: else it is wedged.",
)
@click.option("--journal", type=click.File("ab"), help="Write what happens to this file as JSON lines.")
def main(
    *,
    how: str,
    at_step: int,
    steps: int,
    step_time_ms: int,
    timeout: float,
    progress_timeout: float,
    journal: BinaryIO | None,
) -> None:
    """Train a CNN together with the other replica groups; group 0 ends on the way."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    torch.set_num_threads(1)  # the images are tiny, and the replicas share this machine
    model = cnn()
    sgd = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM)

    def load(state: dict[str, Any]) -> None:
        model.load_state_dict(state["model"])
        sgd.load_state_dict(state["sgd"])

    try:
        replica = Replica(how, at_step, step_time_ms / 1000, journal)
        manager = Manager(  # 1: join, and say how to take over and give out the state
            pg=ProcessGroupGloo(),
            load_state_dict=load,
            state_dict=lambda: {"model": model.state_dict(), "sgd": sgd.state_dict()},
            min_replica_size=1,
            timeout=timedelta(seconds=timeout),
            progress_timeout=timedelta(seconds=progress_timeout),
        )
        manager.on_failure(replica.told)
        parallel, optimizer = DistributedDataParallel(manager, model), Optimizer(manager, sgd)  # 2: wrap both
        replica.gather()
        train(manager, parallel, optimizer, steps, replica)
        replica.conclude(manager, model)
        manager.shutdown()  # leave, so that nobody waits
    except ProcGuardError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
