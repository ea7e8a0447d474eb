"""The keys of ``recovery``: what is done when workers fail, validated. Durations are seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from procguard.errors import UsageError

DAY_S = 24 * 60 * 60.0


class RecoverySettings(BaseModel):
    """The names are the YAML's keys; all are optional."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    enable_auto_recovery: bool = True
    stop_all_on_failure: bool = True
    task_reassignment: bool = False
    recovery_timeout: Annotated[float, Field(gt=0.0, le=DAY_S, allow_inf_nan=False, strict=False)] = 300.0
    """For one attempt."""
    max_recovery_attempts: Annotated[int, Field(ge=1, le=1000)] = 3


def recovery_settings(config: Mapping[str, Any] | None) -> RecoverySettings:
    """The settings of a mapping with some of the keys.

    Raises:
        UsageError: a key or a value that cannot be; names it and says what can.
    """
    try:
        return RecoverySettings.model_validate(dict(config or {}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = ", ".join(RecoverySettings.model_fields)
            raise UsageError(f"recovery.{key}: there is no such key; these are: {known}") from None
        raise UsageError(f"recovery.{key}: {first['input']!r}: {first['msg']}") from None
