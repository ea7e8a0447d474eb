"""Configuration files: the lighthouse's, in ``lighthouse_config``, and the guard's, read here.

``ConfigLoader`` goes through the guard's YAML section by section and worker by worker, so that one mistake
does not hide the next: a user with five of them is told five, each with its line. What stands in the file is
judged first; then what two parts of it say of each other; then whether this machine has what the workers
need.

Where ``${VAR}`` and ``~`` mean something, and what a relative path is relative to, says ``expansion``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from procguard.errors import ConfigError
from procguard.expansion import expand_path, expand_variables
from procguard.guard_config import WORKERS_COUNT_MAX, GuardConfig, StateConfig, broken_rules
from procguard.lighthouse_config import LighthouseConfig, load_lighthouse_config
from procguard.validation import KeyPath, Problem, nearest, one_line_each, problem_at, validated
from procguard.worker_config import WorkerConfig
from procguard.worker_places import missing_places, not_writable
from procguard.yaml_file import YamlFile, read_yaml

__all__ = ["ConfigLoader", "GuardConfig", "LighthouseConfig", "WorkerConfig", "load_lighthouse_config"]

PROBLEMS_SHOWN_MAX = 100
_PATHS: tuple[KeyPath, ...] = (
    ("state", "state_file"),
    ("logging", "file"),
    ("communication", "adapter_config", "keys"),
)
_WORKER_PATHS = ("working_dir", "pid_file", "log_file")

_LINE = re.compile(r", line ([0-9]+)$")

M = TypeVar("M", bound=BaseModel)


class ConfigLoader:
    """Reads the guard's YAML file.

    Args:
        path: the file.
        environ: where ``${VAR}`` is looked up.
        look_at_machine: whether a program that is not found, a folder that is missing and the like are
            problems; False is for a file that is meant for another machine.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        environ: Mapping[str, str] = os.environ,
        *,
        look_at_machine: bool = True,
    ) -> None:
        self.path = Path(path)
        self._environ = environ
        self._look_at_machine = look_at_machine
        self._file = YamlFile(self.path, {}, None)
        self._problems: list[Problem] = []

    def load(self) -> GuardConfig:
        """The settings of the file; its paths are absolute, and its variables filled in.

        Raises:
            ConfigError: a line for each problem.
        """
        config, problems = self.check()
        if config is None:
            more = len(problems) - PROBLEMS_SHOWN_MAX
            text = one_line_each(problems[:PROBLEMS_SHOWN_MAX])
            raise ConfigError(f"{text}\n... and {more} more" if more > 0 else text)
        return config

    def check(self) -> tuple[GuardConfig | None, list[Problem]]:
        """The settings, or None and all that is wrong. Raises nothing."""
        self._problems = []
        try:
            self._file = read_yaml(self.path, remedy="name the guard's YAML file")
        except ConfigError as error:
            return None, [Problem("", "", str(error))]
        content = dict(self._file.content)
        for path in _PATHS:
            self._expand(content, path, self._absolute)
        sections = self._sections(content)
        workers, unread = self._workers(content.get("workers"))
        broken = broken_rules(
            workers,
            sections.get("monitoring"),
            sections.get("communication"),
            sections.get("recovery"),
            sections.get("state"),
            also_there=unread,
        )
        self._problems += [problem_at(*rule, self._file.place) for rule in broken]
        if self._look_at_machine:
            self._look(workers, sections)
        if self._problems:
            return None, sorted(self._problems, key=_line)
        return GuardConfig(workers=tuple(worker for _, worker in workers), **sections), []

    def state_file(self) -> Path:
        """Where the guard of this file remembers, for those who look for one that runs.

        Raises:
            ConfigError: the file cannot be read, or this key not be understood; nothing else in it matters.
        """
        content = dict(read_yaml(self.path, remedy="name the guard's YAML file").content)
        self._problems = []
        self._expand(content, ("state", "state_file"), self._absolute)
        if self._problems:
            raise ConfigError(one_line_each(self._problems))
        state = content.get("state")
        named = state.get("state_file") if isinstance(state, dict) else None
        return Path(
            self._absolute(StateConfig().state_file) if not isinstance(named, str) or not named else named
        )

    def _look(self, workers: list[tuple[int, WorkerConfig]], sections: Mapping[str, Any]) -> None:
        """What this machine does not have."""
        for index, worker in workers:
            for missing in missing_places(worker):
                self._tell(("workers", index, missing.key), missing.value, missing.phrase)
        for path, section in ((("state", "state_file"), "state"), (("logging", "file"), "logging")):
            file = getattr(sections.get(section), path[-1], None)
            phrase = not_writable(Path(file), makes_folders=True) if file else ""
            if phrase:
                self._tell(path, file, phrase)

    def _sections(self, content: dict[str, Any]) -> dict[str, Any]:
        """The sections by name, those that can be read; a missing one has its defaults."""
        sections: dict[str, Any] = {}
        known = GuardConfig.model_fields
        for key, value in content.items():
            kind = known[key].annotation if key in known else None
            if kind is None:
                phrase = f"is not a key of the guard; {nearest(key, list(known))}"
                self._tell((key,), value, phrase)
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                sections[key] = self._validated(kind, {} if value is None else value, (key,))
        for key, field in known.items():
            if key != "workers" and key not in content:
                sections[key] = field.default
        state = sections.get("state")
        if isinstance(state, StateConfig) and not os.path.isabs(state.state_file):  # its default is not
            sections["state"] = state.model_copy(update={"state_file": self._absolute(state.state_file)})
        return sections

    def _workers(self, entries: object) -> tuple[list[tuple[int, WorkerConfig]], list[str]]:
        """The workers that can be read, with their places in the list, and the names of the others."""
        if entries is None:
            return [], []
        if not isinstance(entries, list):
            self._tell(("workers",), entries, "must be a list; write each worker as - worker_id: NAME")
            return [], []
        if len(entries) > WORKERS_COUNT_MAX:
            phrase = f"holds {len(entries)} workers; a guard takes {WORKERS_COUNT_MAX}: start several guards"
            self._tell(("workers",), entries, phrase)
            return [], []
        workers, unread = [], []
        for index, entry in enumerate(entries):
            worker = self._validated(WorkerConfig, self._expanded(entry, index), ("workers", index))
            if worker is not None:
                workers.append((index, worker))
            elif isinstance(entry, dict) and isinstance(entry.get("worker_id"), str):
                unread.append(entry["worker_id"])
        return workers, unread

    def _expanded(self, entry: object, index: int) -> object:
        """A worker as it is written, with its paths and variables filled in; the models judge the rest."""
        if not isinstance(entry, dict):
            return entry
        entry = dict(entry)
        for key in _WORKER_PATHS:
            self._expand(entry, (key,), self._absolute, ("workers", index))
        if isinstance(entry.get("env"), dict):
            for name in entry["env"]:
                self._expand(entry, ("env", name), self._filled_in, ("workers", index))
        return entry

    def _absolute(self, text: str) -> str:
        return expand_path(text, self.path.absolute().parent, self._environ)

    def _filled_in(self, text: str) -> str:
        return expand_variables(text, self._environ)

    def _expand(
        self, content: dict[str, Any], path: KeyPath, expand: Callable[[str], str], above: KeyPath = ()
    ) -> None:
        """Replace the text at ``path``, if there is one; what holds it is copied, for aliases share it."""
        for part in path[:-1]:
            inner = content.get(str(part))
            if not isinstance(inner, dict):
                return
            inner = dict(inner)
            content[str(part)] = inner
            content = inner
        key = str(path[-1])
        text = content.get(key)
        if isinstance(text, str) and text:
            try:
                content[key] = expand(text)
            except ValueError as error:
                self._tell((*above, *path), text, str(error))
                del content[key]  # nothing else is to be said of it

    def _validated(self, model: type[M], content: object, path: KeyPath) -> M | None:
        found, problems = validated(model, content, self._file.place, path)
        self._problems += problems
        return found

    def _tell(self, path: KeyPath, value: object, phrase: str) -> None:
        self._problems.append(problem_at(path, value, phrase, self._file.place))


def _line(problem: Problem) -> int:
    """A file is mended from top to bottom."""
    found = _LINE.search(problem.place)
    return int(found[1]) if found else 0
