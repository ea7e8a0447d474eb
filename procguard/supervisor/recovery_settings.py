"""The keys of ``recovery`` from a mapping, for those who use the recovery without a configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from procguard.errors import UsageError
from procguard.guard_config import RecoveryConfig


def recovery_settings(config: Mapping[str, Any] | None) -> RecoveryConfig:
    """The settings of a mapping with some of the keys.

    Raises:
        UsageError: a key or a value that cannot be; names it and says what can.
    """
    try:
        return RecoveryConfig.model_validate(dict(config or {}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = ", ".join(RecoveryConfig.model_fields)
            raise UsageError(f"recovery.{key}: there is no such key; these are: {known}") from None
        raise UsageError(f"recovery.{key}: {first['input']!r}: {first['msg']}") from None
