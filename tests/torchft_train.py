"""A torchft train script as anybody might have written it: it does not know that ProcGuard exists.

Two ranks hold a layer each, as shards of one model, and each is replicated across the replica groups; with
``FSDP=1`` it is PyTorch that shards one layer. It says what happens as JSON lines on standard output, and
stops after the step that the file ``LAST_STEP`` names.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn
from torch.distributed import PrefixStore, TCPStore, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torchft import DistributedDataParallel, Manager, Optimizer, ProcessGroupGloo

STEP_S = 0.05
RANK = int(os.environ["RANK"])
RANKS = int(os.environ["WORLD_SIZE"])
GROUP = os.environ["REPLICA_GROUP_ID"]
IS_SHARDED = os.environ.get("FSDP") == "1"
PATIENCE = timedelta(seconds=float(os.environ.get("PATIENCE_S", "300")))
"""Of every collective: nobody waits that long in a test that passes."""
last_step = Path(os.environ["LAST_STEP"])


def say(event: str, **facts: object) -> None:
    facts = {"event": event, "group": GROUP, "rank": RANK, "at": time.monotonic(), **facts}
    print(json.dumps(facts), flush=True)


def local(model: nn.Module) -> dict[str, torch.Tensor]:
    """What this rank holds of it; changing that changes the model."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {name: p.to_local() if isinstance(p, DTensor) else p for name, p in parameters.items()}


def load_local(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, held in local(model).items():
            held.copy_(state[name])


def digest(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(held.numpy().tobytes() for held in local(model).values())).hexdigest()


def shard(model: nn.Module, store: TCPStore) -> None:
    """Across the ranks of this group, which have collectives of their own for that."""
    init_process_group(
        "gloo", store=PrefixStore("fsdp", store), rank=RANK, world_size=RANKS, timeout=PATIENCE
    )
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))


def main() -> None:
    torch.set_num_threads(1)
    port = int(os.environ["MASTER_PORT"])
    store = TCPStore("127.0.0.1", port, is_master=RANK == 0, wait_for_workers=False)
    say("store")
    model = nn.Linear(16, 4)  # random, and another one in each process until they have healed
    if IS_SHARDED:
        shard(model, store)
    inner = torch.optim.SGD(model.parameters(), lr=0.05)

    def load(state: dict[str, dict[str, torch.Tensor]]) -> None:
        load_local(model, state["model"])
        inner.load_state_dict(state["optimizer"])
        say("healed")

    manager = Manager(
        pg=ProcessGroupGloo(timeout=PATIENCE),
        min_replica_size=1,
        load_state_dict=load,
        state_dict=lambda: {"model": local(model), "optimizer": inner.state_dict()},
        replica_id=GROUP,
        timeout=PATIENCE,
        connect_timeout=timedelta(seconds=30),
        use_async_quorum=os.environ.get("SYNC_QUORUM") != "1",
    )
    wrapped: nn.Module = model
    if isinstance(model, FSDPModule):
        model.set_all_reduce_hook(lambda gradients: manager.allreduce(gradients).wait())
    else:
        wrapped = DistributedDataParallel(manager, model)
    optimizer = Optimizer(manager, inner)
    inputs = torch.randn(64, 16, generator=torch.Generator().manual_seed(int(GROUP)))
    wanted = inputs @ torch.linspace(-1, 1, 64).reshape(16, 4) * (1 if IS_SHARDED else RANK + 1)
    say("started", pid=os.getpid())
    while not last_step.exists() or manager.current_step() < int(last_step.read_text()):
        time.sleep(STEP_S)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(wrapped(inputs), wanted)
        loss.backward()
        before = manager.current_step()
        optimizer.step()
        committed = manager.current_step() > before
        say(
            "step",
            step=manager.current_step(),
            committed=committed,
            participants=manager.num_participants(),
            loss=loss.item(),
        )
    say("ended", step=manager.current_step(), weights=digest(model))
    manager.shutdown()
    del store


if __name__ == "__main__":
    main()
