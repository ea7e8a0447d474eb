"""The guard's side: worker processes, their health, and what is done when one fails."""

from __future__ import annotations
