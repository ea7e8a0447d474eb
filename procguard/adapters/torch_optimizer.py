"""``Optimizer``: the train loop's two calls to the Manager, in the places where a loop calls its optimizer.

``zero_grad`` begins a step, ``step`` ends it: the wrapped optimizer changes the weights only if the step
counts on all replicas. It is an ``Optimizer`` of torch's, so that schedulers of the learning rate accept it;
what it does not do itself is the wrapped one's.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from procguard.errors import UsageError


class Commits(Protocol):
    """Of the Manager, what is needed here."""

    def start_quorum(self) -> None: ...

    def should_commit(self) -> bool: ...


class Optimizer(torch.optim.Optimizer):
    """Wraps an optimizer.

    ::

        optimizer = Optimizer(manager, torch.optim.AdamW(model.parameters()))
        optimizer.zero_grad()            # asks for a quorum, which forms while the forward pass runs
        loss(model(batch)).backward()
        optimizer.step()                 # applied on all replicas, or on none

    Raises, in ``step``, what ``Manager.should_commit`` raises.
    """

    def __init__(self, manager: Commits, optim: torch.optim.Optimizer) -> None:
        self.manager = manager
        self.optim = optim

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Begin a step."""
        self.manager.start_quorum()
        self.optim.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> None:
        """End the step: change the weights if it counts."""
        if closure is not None:
            raise UsageError(
                "an optimizer whose closure computes the gradients again cannot be shared between replicas; "
                "call step() without one"
            )
        if self.manager.should_commit():
            self.optim.step()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.optim.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.optim.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optim.load_state_dict(state_dict)

    def __getattr__(self, name: str) -> Any:
        """``param_groups``, ``state``, ``defaults`` and whatever else the wrapped one has."""
        if name == "optim":  # asked for before there is one, as by a copy
            raise AttributeError(name)
        return getattr(self.optim, name)

    def __repr__(self) -> str:
        return f"Optimizer({self.optim!r})"

    def __getstate__(self) -> dict[str, Any]:
        raise UsageError("a fault-tolerant optimizer cannot be copied; save its state_dict()")
