"""Whether the values of a config are what the functions and classes that get them say they take."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import hydra

from cityseg.errors import Problems, did_you_mean


def check_arguments(node: Any, key: str, problems: Problems) -> None:
    """Compare what a config node and all within it would hand to their targets with the targets' type hints.

    Args:
        node: plain containers.
        key: of the node, as it is typed.
        problems: what does not fit is added here.
    """
    if isinstance(node, list):
        for index, value in enumerate(node):
            check_arguments(value, f"{key}[{index}]", problems)
    if isinstance(node, dict):
        if "_target_" in node:
            hints = target_hints(str(node["_target_"]))
            if hints is None:
                problems.add(f"{key}._target_={node['_target_']}: expected the dotted name of a function or class")
            check_types(node, {"_partial_": bool, **(hints or {})}, f"{key}.", problems)
        for name, value in node.items():
            check_arguments(value, f"{key}.{name}", problems)


def check_types(values: Mapping[str, Any], hints: Mapping[str, Any], prefix: str, problems: Problems) -> None:
    """Compare plain values with type hints of the same names; names without a hint may be anything."""
    for name, value in values.items():
        if name in hints and not fits(value, hints[name]):
            near = did_you_mean(str(value), [known for known in _literals(hints[name]) if isinstance(known, str)])
            problems.add(f"{prefix}{name}: found {value!r}, expected {_shown(hints[name])}.{near}")


@lru_cache
def target_hints(target: str) -> dict[str, Any] | None:
    """Type hints of the arguments of a function or class, by its dotted name; None where there is no such thing."""
    try:
        found = hydra.utils.get_object(target)
    except Exception:  # that of a module which could not be imported may be any
        return None
    bases = [vars(base).get("__init__") for base in reversed(found.__mro__)] if isinstance(found, type) else [found]
    hints: dict[str, Any] = {}
    for function in bases:
        with suppress(NameError, TypeError):  # hints for type checkers alone
            hints |= get_type_hints(inspect.unwrap(function))  # type: ignore[arg-type]
    return hints


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is what a type hint asks for; True where the hint, or the value, is no plain one.

    >>> fits(1, float), fits(True, int), fits([1, 2], tuple[float, float]), fits("x", Literal["y"] | None)
    (True, False, True, False)
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    kind = NoneType if hint is None else origin or hint
    plain = isinstance(value, str | int | float | list | dict | NoneType)
    if not plain or not isinstance(kind, type) or kind in (object, Any):
        return True
    if isinstance(value, bool | str):  # the one is an integer too, and the other a sequence, where no one means it
        return kind is type(value)
    if isinstance(value, list) and (kind is tuple or issubclass(list, kind)):
        length = len(inner) if kind is tuple and ... not in inner else len(value)
        each = inner if length == len(inner) else inner[:1] * length
        return length == len(value) and (not inner or all(map(fits, value, each)))
    if isinstance(value, dict):  # one with a target is built first
        named = "_target_" in value
        return named or (
            issubclass(dict, kind) and all(fits(one, hint) for one in value.values() for hint in inner[1:])
        )
    return isinstance(value, kind) or (isinstance(value, int) and kind is float)


def _literals(hint: Any) -> Iterator[Any]:
    for one in get_args(hint):
        yield from _literals(one) if get_args(one) else [one]


def _shown(hint: Any) -> str:
    """A type hint without the modules' names."""
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(map(_shown, get_args(hint)))
    return "None" if hint is NoneType else re.sub(r"\b(\w+\.)+(?=\w)", "", inspect.formatannotation(hint))
