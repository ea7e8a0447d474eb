"""A worker of the guard: works on the tasks that it is given, and says that it gets on.

Run by ``configs/example_config.yaml``, and just as well by hand, where no guard is and nothing is said::

    PROCGUARD_TASKS='["shard-0"]' python examples/guarded_worker.py

The two places that make it a guarded worker are numbered.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from itertools import count

from procguard.client import beat

STEP_S = 0.05
STEPS_PER_LINE = 100


def main() -> None:
    # Ask to end rather than be killed: the step under way is finished.
    asked_to_end: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked_to_end.append(number))

    # 1. What to work on: told at the start, and anew at each one.
    tasks = json.loads(os.environ.get("PROCGUARD_TASKS") or "[]")
    print(f"working on {', '.join(map(str, tasks)) or 'nothing'}", flush=True)

    for step in count(1):
        # 2. "I get on": from the first one on, silence for heartbeat_timeout is a hang.
        beat()
        time.sleep(STEP_S)
        if step % STEPS_PER_LINE == 0:
            print(f"step {step}", flush=True)
        if asked_to_end:
            print(f"ended after step {step}", flush=True)
            sys.exit(0)


if __name__ == "__main__":
    main()
