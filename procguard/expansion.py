"""``${VAR}`` and ``~`` in the guard's YAML: where they mean something, and what.

- In paths (``working_dir``, ``pid_file``, ``log_file``, ``state.state_file``, ``logging.file`` and a
  lighthouse's
  ``keys``) and in the values of a worker's ``env``, ``${VAR}`` is that variable of the guard's own
  environment, and ``${VAR:-text}`` is the text where it is unset or empty. ``$${`` is a plain ``${``.
- In paths, a leading ``~`` is the home directory, after that.
- A relative path is relative to the folder of the YAML file, wherever the guard is started from.
- A ``command`` is left as it is: a worker may want its own ``${RANK}``, from its own environment.
- ``$VAR`` without braces means nothing: in a password it would mean the wrong thing.

A variable that is not set and has no ``:-`` is an error: a path with a hole in it is another path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

_REFERENCE = re.compile(
    r"\$(?P<escaped>\$\{)|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}"
)
_OPEN = re.compile(r"\$\{")


def expand_variables(text: str, environ: Mapping[str, str]) -> str:
    """``text`` with each ``${VAR}`` in its place. Raises ``ValueError`` with the phrase for the user."""

    def value(found: re.Match[str]) -> str:
        if found["escaped"]:
            return "${"
        name: str = found["name"]
        if environ.get(name):
            return environ[name]
        if found["default"] is not None:
            return str(found["default"])
        if name in environ:
            return ""
        raise ValueError(
            f"needs the variable {name}, which is not set; set it, or write ${{{name}:-DEFAULT}}"
        )

    if _OPEN.search(_REFERENCE.sub("", text)):
        raise ValueError("has a ${ that is no ${NAME} or ${NAME:-TEXT}; write $${ where none is meant")
    return _REFERENCE.sub(value, text)


def expand_path(text: str, folder: Path, environ: Mapping[str, str]) -> str:
    """An absolute path. Raises ``ValueError`` with the phrase for the user."""
    expanded = expand_variables(text, environ)
    if "\0" in expanded:
        raise ValueError("has a NUL character, which no path can have; remove it")
    if expanded == "~" or expanded.startswith("~/"):
        home = environ.get("HOME") or os.path.expanduser("~")
        expanded = home + expanded[1:]
    elif expanded.startswith("~"):
        expanded = os.path.expanduser(expanded)
    if not expanded:
        raise ValueError("is empty once its variables are filled in; set them, or leave the key out")
    return os.path.normpath(folder / expanded)
