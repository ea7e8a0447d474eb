"""One trainer of the job that trains beside an attack: ``python -m fuzz.trainer``, until it is killed.

A real Manager with its real listener, and a real all-reduce. Says each step on standard output, a JSON object
a line, and each notice that it was told.
"""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from typing import Any

import numpy as np

from procguard.adapters.collective import RingProcessGroup
from procguard.client import Manager
from procguard.messages import Notice

STEP_S = 0.02
WEIGHTS_COUNT = 1_000
TIMEOUT = timedelta(seconds=60)


def say(event: str, **facts: Any) -> None:
    os.write(1, json.dumps({"event": event, **facts}).encode() + b"\n")


def told(notice: Notice) -> None:
    say("told", replica_id=notice.replica_id, cause=str(notice.cause))


def main() -> None:
    weights = np.zeros(WEIGHTS_COUNT)
    state = {"weights": weights}
    manager = Manager(
        pg=RingProcessGroup(TIMEOUT),
        load_state_dict=lambda loaded: weights.__setitem__(slice(None), loaded["weights"]),
        state_dict=lambda: state,
        min_replica_size=1,
    )
    manager.on_failure(told)
    while True:
        manager.start_quorum()
        gradients = np.full(WEIGHTS_COUNT, float(manager.current_step()))
        time.sleep(STEP_S)
        manager.allreduce(gradients).wait()
        committed = manager.should_commit()
        if committed:
            weights -= gradients
        say(
            "step",
            step=manager.current_step(),
            committed=committed,
            size=manager.num_participants(),
            weight=float(weights[0]),
        )


if __name__ == "__main__":
    main()
