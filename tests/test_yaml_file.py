"""Where in a YAML file things stand; what is no configuration is in tests/test_lighthouse_config.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from procguard.validation import KeyPath
from procguard.yaml_file import YamlFile, read_yaml

TEXT = """# a comment
first: 1
list:
  - name: a
    deep: {x: 1,
           y: 2}
  - &b
    name: b
  - *b
  - plain
last:
"""


@pytest.fixture
def file(tmp_path: Path) -> YamlFile:
    path = tmp_path / "f.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return read_yaml(path, remedy="")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("first",), 2),
        (("list",), 3),
        (("list", 0), 4),
        (("list", 0, "name"), 4),
        (("list", 0, "deep", "y"), 6),
        (("list", 1, "name"), 8),
        (("list", 2, "name"), 8),
        (("list", 3), 10),
        (("last",), 11),
    ],
)
def test_a_key_and_an_item_have_their_line(file: YamlFile, path: KeyPath, line: int) -> None:
    assert file.place(path) == f"{file.path}, line {line}"


@pytest.mark.parametrize(
    ("path", "line"),
    [(("list", 0, "nothing"), 4), (("list", 9), 3), (("first", "x"), 2), (("nothing",), 2), ((), 2)],
)
def test_what_is_not_there_has_the_line_of_what_would_hold_it(
    file: YamlFile, path: KeyPath, line: int
) -> None:
    assert file.place(path) == f"{file.path}, line {line}"


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("", encoding="utf-8")
    assert read_yaml(path, remedy="") == YamlFile(path, {}, None)
    assert read_yaml(path, remedy="").place(("a",)) == str(path)


def test_a_path_through_a_circle_ends(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("a: &x [*x]\n", encoding="utf-8")
    assert read_yaml(path, remedy="").place(("a", *(0,) * 1000)) == f"{path}, line 1"
