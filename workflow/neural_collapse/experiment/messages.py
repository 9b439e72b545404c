"""Pydantic's errors as one sentence each, with the keys of a config file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ..io.errors import UserError
from ..io.text import did_you_mean, shown

_ONE_JOB = "no longer exists: every learning rate is a job of its own"
_SWEPT = "belongs to the sweep; write sweep.learning_rate"
OTHER_KEYS = {
    "sweep.together": f"{_ONE_JOB}, and small jobs share a GPU by resources.gpu_slots; remove it",
    "sweep.together_as": f"{_ONE_JOB}; remove it",
    "sweep.halving_epochs": f"{_ONE_JOB} and is trained to its end; remove it",
    "sweep.lr": "is called learning_rate",
    **dict.fromkeys(("training.learning_rate", "training.lr"), _SWEPT),
    **dict.fromkeys(("training.optimizer.learning_rate", "training.optimizer.lr"), _SWEPT),
    "training.label_smoothing": "is written as loss: label_smoothing, and its amount as smoothing",
}
"""What became of keys of earlier versions, and what keys of other programs are called here."""

# Pydantic's words for programmers, and a config file's.
_WORDS = (
    (r"^Value error, ", ""),
    (
        r"^Input should be (a valid dictionary|a valid mapping|an object)\b.*",
        "must hold keys and values",
    ),
    (r"^Input should be a valid (tuple|list)$", "must be a list"),
    (r"^Input should be a valid string$", "must be text"),
    (r"^Input should be a valid string\b.*", "must be text in Unicode"),
    (r"^Input should be a valid integer\b.*", "must be a whole number"),
    (r"^Input should be a valid number\b.*", "must be a number"),
    (r"^Input should be a valid boolean\b.*", "must be true or false"),
    (r"^Input should be ", "must be "),
    (r"^(Tuple|List|String) should have at least 1 .*", "must not be empty"),
    (r"^(Tuple|List|String) should have ", "must have "),
    (r" after validation, not [0-9]+$", ""),
    (
        r"^String should match pattern .*_\.-.*",
        "must be made of letters, digits, _, . and -, and begin with a letter or digit",
    ),
    (
        r"^String should match pattern .*",
        "must be made of letters, digits and _, and begin with a letter or digit",
    ),
)


def _names(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _names(argument)


def _suggestion(root: type[BaseModel], location: tuple, key: str) -> str:
    """', did you mean ...?' for a key that a model at `location` does not know."""
    models: list[type[BaseModel]] = [root]
    for part in location:
        following = []
        for model in models:
            field = model.model_fields.get(part) if isinstance(part, str) else None
            if field is not None:
                following += _names(field.rebuild_annotation())
        models = following or models
    known = sorted({name for model in models for name in model.model_fields})
    return f"; {did_you_mean(key, known, 'known keys')}"


def one_sentence(error: ValidationError, source: str, root: type[BaseModel]) -> str:
    """The first problem of a pydantic error as one sentence that names the file and the key."""
    # An unknown key comes first: a misspelt one also makes the right one missing.
    problems = error.errors()
    problem = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    if isinstance(problem["input"], (list, tuple)):
        # Where a number or a list may stand, a list is no fault, but what is in it may be one.
        place = problem["loc"][:-1]
        inner = [p for p in problems if len(p["loc"]) > len(place) + 1]
        problem = next((p for p in inner if p["loc"][: len(place)] == place), problem)
    location = problem["loc"]
    parts = [str(part) for part in location if not str(part).startswith(("function-", "tuple["))]
    # A union names its branches in the location; the file does not.
    parts = [part for part in parts if part not in {"int", "constrained-int", "float", "str"}]
    key = ".".join(part if part.isprintable() else ascii(part)[1:-1] for part in parts)
    key = key if len(key) <= 200 else f"{key[:200]}..."
    if problem["type"] == "extra_forbidden":
        if key.split("recipe.")[-1] in OTHER_KEYS:
            return f"{source}: the key '{key}' {OTHER_KEYS[key.split('recipe.')[-1]]}"
        suggestion = _suggestion(root, location[:-1], str(location[-1]))
        return f"{source}: unknown key '{key}'{suggestion}"
    if problem["type"] == "missing":
        return f"{source}: the key '{key}' is missing"
    message = problem["msg"]
    for pattern, words in _WORDS:
        message = re.sub(pattern, words, message)
    value = problem["input"]
    found = "" if isinstance(value, (dict, BaseModel)) else f" (it is {shown(value)})"
    return f"{source}: {key + ': ' if key else ''}{message}{found}"


def parse_model(model: type[BaseModel], values: Any, source: str) -> Any:
    """A typed model of a mapping; raises UserError naming the key and `source`, its file."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(one_sentence(error, source, model)) from None
