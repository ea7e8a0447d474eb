"""What a worker needs of this machine before it can start: its program, its folder, room for its files.

Asked when a file is checked and again when a worker is registered, because files come and go; that something
is there now is no promise that it will be. Nothing is created here, and nothing that exists is opened for
writing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from procguard.validation import shown
from procguard.worker_config import WorkerConfig


class Missing(NamedTuple):
    """What is not as it must be."""

    key: str
    value: object
    phrase: str
    """What is wrong and what to do, to follow ``key = value``."""


def missing_places(worker: WorkerConfig) -> Iterator[Missing]:
    """All that stands in the way of this worker's start."""
    folder = Path(worker.working_dir) if worker.working_dir else Path.cwd()
    if phrase := _no_folder(folder):
        yield Missing("working_dir", worker.working_dir or str(folder), phrase)
    elif phrase := _no_program(worker, folder):
        yield Missing("command", " ".join(worker.command), phrase)
    if worker.pid_file and (phrase := not_writable(folder / worker.pid_file, makes_folders=False)):
        yield Missing("pid_file", worker.pid_file, phrase)
    if worker.log_file and (phrase := not_writable(folder / worker.log_file, makes_folders=True)):
        yield Missing("log_file", worker.log_file, phrase)


def _no_folder(folder: Path) -> str:
    if not folder.exists():
        return "does not exist; make it, or name another folder"
    if not folder.is_dir():
        return "is not a folder; name one"
    if not os.access(folder, os.X_OK):
        return "cannot be entered by this user; change its permissions, or name another folder"
    return ""


def _no_program(worker: WorkerConfig, folder: Path) -> str:
    """A name with a slash is a file, seen from the worker's folder; any other is looked for in its PATH."""
    program = worker.command[0]
    if "/" not in program:
        search = worker.env.get("PATH") or os.environ.get("PATH") or os.defpath
        if shutil.which(program, path=search):
            return ""
        remedy = "write the program's whole path"
        return f"starts with {program}, which is not found in PATH = {shown(search)}; {remedy}"
    path = folder / program
    if not path.exists():
        hint = "; ~ means nothing in a command" if program.startswith("~") else ""
        return f"starts with {program}, and there is no file {path}{hint}; correct the path"
    if path.is_dir() or not os.access(path, os.X_OK):
        return (
            f"starts with {program}, which is not executable; chmod +x {path}, or name its interpreter first"
        )
    return ""


def not_writable(path: Path, *, makes_folders: bool) -> str:
    """Why this file could not be written, to follow ``key = value``; empty where it could.

    Args:
        makes_folders: its folders are made when it is; so the first that exists is asked.
    """
    if path.is_dir():
        return "is a folder; name a file in it"
    if path.exists():
        writable = os.access(path, os.W_OK)
        return (
            "" if writable else "cannot be written by this user; change its permissions, or name another file"
        )
    folder = path.parent
    while makes_folders and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.exists():
        return f"cannot be made: there is no folder {folder}; make it, or name another file"
    if not folder.is_dir():
        return f"cannot be made: {folder} is not a folder; name another file"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"cannot be made: this user may not write in {folder}; name another file"
    return ""
