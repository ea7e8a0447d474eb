"""pydantic's errors in our words, and where in a model a key stands."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field

from procguard.validation import (
    KeyPath,
    Problem,
    model_at,
    nearest,
    one_line_each,
    path_text,
    shown,
    validated,
)


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, title="an inner")

    size: int = 0
    name: Annotated[str, Field(examples=["ada"])]


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    inner: Inner | None = None
    many: Annotated[tuple[Inner, ...], Field(max_length=2)] = ()
    named: dict[str, Inner] = {}
    ratio: float = 0.5


def place(path: KeyPath) -> str:
    return f"at {path_text(path)}"


def told(content: object, path: KeyPath = ()) -> list[str]:
    _, problems = validated(Outer, content, place, path)
    return [str(problem) for problem in problems]


def test_what_fits_is_the_model() -> None:
    model, problems = validated(Outer, {"inner": {"name": "x"}}, place)
    assert (model, problems) == (Outer(inner=Inner(name="x")), [])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"inner": {}}, "at inner: inner.name is missing; write name: ada"),
        (
            {"inner": {"name": "x", "sise": 1}},
            "at inner.sise: inner.sise = 1 is not a key of an inner; did you mean size?",
        ),
        ({"rato": 1.0}, "at rato: rato = 1.0 is not a key of this part; did you mean ratio?"),
        (
            {"zebra": 1},
            "at zebra: zebra = 1 is not a key of this part; the keys are inner, many, named, ratio",
        ),
        ({"many": ({"name": 5},)}, "at many[0].name: many[0].name = 5 must be text; put it in quotes"),
        ({"many": [{"name": "x"}]}, "at many: many = [{'name': 'x'}] must be a list, such as [a, b]"),
        ({"ratio": "1"}, "at ratio: ratio = '1' must be a number"),
        ({"inner": 5}, "at inner: inner = 5 must be lines of the form key: value"),
        ({"named": []}, "at named: named = [] must be lines of the form key: value"),
        ({"inner": {"name": "x", "size": True}}, "at inner.size: inner.size = True must be a whole number"),
    ],
)
def test_what_does_not_fit_is_one_line(content: object, said: str) -> None:
    assert told(content) == [said]


def test_the_path_above_is_part_of_the_key() -> None:
    assert told({"ratio": None}, ("workers", 3)) == [
        "at workers[3].ratio: workers[3].ratio = None must be a number"
    ]


def test_all_problems_are_told_and_none_names_pydantic() -> None:
    found = told({"ratio": "x", "inner": {"size": "y"}, "other": 1, "many": ({"name": "x"},) * 3})
    assert len(found) == 5
    assert not any("pydantic" in line or "Input" in line or "type=" in line for line in found)


def test_a_value_of_any_length_is_one_short_line() -> None:
    value = {"a\n" * 100: ["x" * 1000] * 1000}
    assert len(shown(value)) < 1000
    assert "\n" not in shown(value)


def test_the_model_that_holds_a_key() -> None:
    assert model_at(Outer, ()) is Outer
    assert model_at(Outer, ("inner",)) is Inner
    assert model_at(Outer, ("many", 5)) is Inner
    for path in (("ratio",), ("nothing",), ("many",), ("inner", "size"), ("ratio", 0, "x")):
        assert model_at(Outer, path) is None


def test_the_nearest_or_all() -> None:
    assert nearest("tiem", ["time", "space"]) == "did you mean time?"
    assert nearest("zebra", ["time", "space"], "there are") == "there are time, space"


def test_a_problem_without_a_place_is_its_sentence() -> None:
    problems = [Problem("", "a", "a = 1 is wrong"), Problem("f, line 2", "b", "b = 2 is too")]
    assert one_line_each(problems) == "a = 1 is wrong\nf, line 2: b = 2 is too"
