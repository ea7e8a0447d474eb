"""``${VAR}`` and ``~``."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procguard.expansion import expand_path, expand_variables

ENVIRON = {"HOME": "/home/ada", "RUN": "run", "EMPTY": "", "NESTED": "${RUN}"}


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("plain", "plain"),
        ("${RUN}/${RUN}", "run/run"),
        ("${EMPTY}", ""),
        ("${EMPTY:-x}${NONE:-y z}", "xy z"),
        ("${NONE:-}", ""),
        ("$${RUN}", "${RUN}"),
        ("$$${RUN}", "$${RUN}"),
        ("$RUN $$ $", "$RUN $$ $"),
        ("${NESTED}", "${RUN}"),
    ],
)
def test_variables(text: str, means: str) -> None:
    assert expand_variables(text, ENVIRON) == means


@pytest.mark.parametrize(
    ("text", "said"),
    [("${NONE}", "needs the variable NONE"), ("${1}", "is no"), ("${RUN", "is no"), ("${RUN:x}", "is no")],
)
def test_what_cannot_be_filled_in(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        expand_variables(text, ENVIRON)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("a/../b", "/etc/pg/b"),
        ("/var/x", "/var/x"),
        ("~/x", "/home/ada/x"),
        ("~", "/home/ada"),
        ("a~", "/etc/pg/a~"),
        ("${HOME}/x", "/home/ada/x"),
        ("${NONE:-~/x}", "/home/ada/x"),
        (".", "/etc/pg"),
    ],
)
def test_paths(text: str, means: str) -> None:
    assert expand_path(text, Path("/etc/pg"), ENVIRON) == means


@given(st.text(alphabet="${}:-~/RUN \0x", max_size=20))
def test_whatever_is_written_is_a_text_or_a_reason(text: str) -> None:
    for expand in (
        lambda: expand_variables(text, ENVIRON),
        lambda: expand_path(text, Path("/etc/pg"), ENVIRON),
    ):
        try:
            assert isinstance(expand(), str)
        except ValueError as error:
            assert str(error).startswith(("needs", "has", "is empty"))
