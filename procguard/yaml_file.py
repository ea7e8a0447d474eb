"""A YAML file read strictly, with the line of each of its keys.

PyYAML lets the last of two equal keys win, takes ``on`` for a key that is a truth, and unfolds merge keys; a
configuration in which that happens is not the one its writer meant, so here each is an error with its line.
Whatever the file holds, the outcome is a mapping or a ``ConfigError``, and neither costs more than the file.

Knows nothing of what the keys mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import yaml

from procguard.errors import ConfigError
from procguard.validation import KeyPath, shown

FILE_BYTES_MAX = 1 << 20


class YamlFile(NamedTuple):
    """A file's mapping, and where in the file things stand."""

    path: Path
    content: dict[str, object]
    root: yaml.Node | None

    def place(self, path: KeyPath) -> str:
        """``FILE, line N``: of the key or item at this path or, where there is none, of what would hold it.

        Looked up on demand: aliases can make a small file's paths too many to be listed.
        """
        node, line = self.root, None if self.root is None else self.root.start_mark.line
        for part in path:
            found = _within(node, part)
            if found is None:
                break
            mark, node = found
            line = mark.line
        return str(self.path) if line is None else f"{self.path}, line {line + 1}"


def _within(node: yaml.Node | None, part: str | int) -> tuple[yaml.Mark, yaml.Node] | None:
    """Where the key or item begins, and its value."""
    if isinstance(node, yaml.MappingNode):
        pairs = [pair for pair in node.value if pair[0].value == part]
        return (pairs[0][0].start_mark, pairs[0][1]) if pairs else None
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark, node.value[part]
    return None


class _StrictLoader(yaml.SafeLoader):
    """YAML in which each key is text and stands once.

    PyYAML itself lets the last of two equal keys win. Merge keys are refused because a file of a few
    kilobytes can make them unfold into gigabytes; plain aliases share what they name and cost nothing.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Called by PyYAML for each mapping, before it is constructed; theirs unfolds merge keys."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                written = shown(key.value) if isinstance(key, yaml.ScalarNode) else f"that is a {key.id}"
                problem = f"the key {written} is no text; a key is a plain word"
            elif key.value in seen:
                problem = f"the key {key.value} is already set above; remove one of the two"
            else:
                seen.add(key.value)
                continue
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)


def read_yaml(path: Path, remedy: str) -> YamlFile:
    """The mapping in the file; an empty file is an empty mapping.

    Args:
        remedy: what to do about a file that cannot be read.

    Raises:
        ConfigError: it cannot be read, or is no such mapping.
    """
    text = _read_bounded(path, remedy)
    try:
        loader = _StrictLoader(text)
        try:
            root = loader.get_single_node()
            content = None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        # Besides its own errors, PyYAML lets through what Python says to a scalar of the wrong tag (!!int x).
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply for a configuration") from None
    if root is None or content is None:
        return YamlFile(path, {}, None)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {shown(content)}; write lines of the form key: value")
    return YamlFile(path, content, root)


def _read_bounded(path: Path, remedy: str) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    if len(text) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: is larger than {FILE_BYTES_MAX} bytes; that cannot be a configuration")
    return text
