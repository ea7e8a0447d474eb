"""What is said of settings that cannot work: one line a problem, with place, key, value and remedy.

pydantic finds most of what is wrong, in words of its own; here they become ours, the same for the lighthouse,
the guard and a worker that is registered from Python. A user reads which key is meant, as
``workers[1].command``, where it stands, what stands there, and what would do; never a traceback, a class name
or a link.

A model's ``title`` says whose keys it holds ("a worker"), so that an unknown key can be told whose it is not.
Must not read files or variables: those who do say with ``place`` where a value came from.
"""

from __future__ import annotations

import difflib
import reprlib
import types
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

KeyPath = tuple[str | int, ...]
Place = Callable[[KeyPath], str]
"""Where the value at this path comes from, such as ``train.yaml, line 3``; empty: nowhere in particular."""

KEYS_SHOWN_MAX = 40

M = TypeVar("M", bound=BaseModel)

_short = reprlib.Repr()  # for values in messages, which may come from a hostile file
_short.maxlevel, _short.maxstring, _short.maxother = 2, 80, 80

_PHRASES = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text; put it in quotes",
    "tuple_type": "must be a list, such as [a, b]",
    "dict_type": "must be lines of the form key: value",
    "model_type": "must be lines of the form key: value",
    "model_attributes_type": "must be lines of the form key: value",
}


class Problem(NamedTuple):
    """One thing that cannot work."""

    place: str
    """The file and line, the variable or the flag that says so; empty where there is none."""
    key: str
    """The key's path; empty where the whole is meant."""
    text: str
    """The sentence, with key, value and remedy."""

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place else self.text


def shown(value: object) -> str:
    """A value as a message shows it: on one line, and cut short."""
    return _short.repr(value)


def path_text(path: KeyPath) -> str:
    """``workers[1].command``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def nearest(key: str, known: list[str], all_of_them: str = "the keys are") -> str:
    """The known one that was probably meant, or all of them, as a remedy."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]}?" if near else f"{all_of_them} {', '.join(known[:KEYS_SHOWN_MAX])}"


def problem_at(path: KeyPath, value: object, phrase: str, place: Place) -> Problem:
    """``place: key = value phrase``."""
    key = path_text(path)
    return Problem(place(path), key, f"{key} = {shown(value)} {phrase}")


def validated(
    model: type[M], content: Any, place: Place, path: KeyPath = ()
) -> tuple[M | None, list[Problem]]:
    """The model of ``content``, which stands at ``path``; None when there are problems."""
    try:
        return model.model_validate(content), []
    except ValidationError as error:
        found = error.errors(include_url=False)
        return None, [problem_of(details, model, place, path) for details in found]


def problem_of(details: ErrorDetails, model: type[BaseModel], place: Place, path: KeyPath = ()) -> Problem:
    """One of pydantic's errors about ``model``, which stands at ``path``, in our words."""
    inside = tuple(details["loc"])
    at = (*path, *inside)
    kind = details["type"]
    if kind == "missing":
        return Problem(
            place(at[:-1]), path_text(at), f"{path_text(at)} is missing; {_how_to_write(model, inside)}"
        )
    if kind == "extra_forbidden":
        owner = model_at(model, inside[:-1])
        known = list(owner.model_fields) if owner else []
        whose = (owner.model_config.get("title") if owner else None) or "this part"
        return problem_at(
            at, details["input"], f"is not a key of {whose}; {nearest(str(at[-1]), known)}", place
        )
    if kind == "value_error":
        phrase = str(details["ctx"]["error"])
    else:
        phrase = _PHRASES.get(kind) or details["msg"].replace("Input should be", "must be")
    return problem_at(at, details["input"], phrase, place)


def model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The model that holds what stands at ``path`` within ``model``; None where no model does."""
    found: Any = model
    for part in path:
        if isinstance(part, int):
            found = next(iter(get_args(found)), None)
        elif isinstance(found, type) and issubclass(found, BaseModel) and part in found.model_fields:
            found = found.model_fields[part].annotation
        else:
            return None
        found = _bare(found)
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _bare(annotation: Any) -> Any:
    """Without ``Annotated`` and ``None``."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _bare(next(kind for kind in get_args(annotation) if kind is not type(None)))
    return annotation


def _how_to_write(model: type[BaseModel], path: KeyPath) -> str:
    """What a missing key could look like: its first example, where its field gives one."""
    owner = model_at(model, path[:-1])
    field = owner.model_fields.get(str(path[-1])) if owner else None
    examples = field.examples if field else None
    return f"write {path[-1]}: {examples[0]}" if examples else f"write {path[-1]}: ..."


def one_line_each(problems: list[Problem]) -> str:
    """The text of an error that names them all."""
    return "\n".join(map(str, problems))
