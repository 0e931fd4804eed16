"""Ranges of arguments: types that say what a number may be, and `checked`, which holds them.

    @checked
    def simclr(temperature: Positive = 0.1, epochs: Count = 50, warmup: FractionBelowOne = 0.1): ...

A call with a value outside its range is an InputError that names the flag, from Python and from
the command line alike, before anything is read. Fields of dataclasses and Flax modules that are
given as arguments are checked in the same way.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
from dataclasses import dataclass
import functools
import inspect
import math
import os
import types
from typing import Annotated, Any, get_args, get_origin, get_type_hints, Literal, TypeVar, Union

from ssljax.errors import InputError

F = TypeVar("F", bound=Callable)


@dataclass(frozen=True)
class Range:
    """Interval of finite numbers, open at `above` and `below`, closed at `least` and `most`."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def holds(self, x: float) -> bool:
        """Whether a number is finite and in the interval."""
        inside = self.least <= x <= self.most and self.above < x < self.below
        return inside and math.isfinite(x)

    def __str__(self) -> str:
        bounds = {
            "at least": self.least,
            "above": self.above,
            "at most": self.most,
            "below": self.below,
        }
        bounds = {word: x for word, x in bounds.items() if math.isfinite(x) and x != LARGEST}
        said = [f"{word} {bound:g}" for word, bound in bounds.items()]
        return " and ".join(said) or "finite"


@dataclass(frozen=True)
class NotEmpty:
    """A list that needs an element or more."""

    def holds(self, x: Any) -> bool:
        """Whether there is an element."""
        return len(x) > 0

    def __str__(self) -> str:
        return "one number or more"


# Types of single values, and what is said of another one.
SIMPLE: dict[Any, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "a text"),
    type(None): (type(None), "None"),
}
LARGEST = 2**31 - 1  # Indices and steps are int32 on a device.
Count = Annotated[int, Range(1, LARGEST)]  # Sizes, and numbers of things: 1, 2, ...
CountOrZero = Annotated[int, Range(0, LARGEST)]  # The same where 0 stands for none, or a default.
Number = Annotated[float, Range()]  # Any finite number.
Positive = Annotated[float, Range(above=0)]  # Learning rates, temperatures, scales.
NotNegative = Annotated[float, Range(least=0)]  # Weights of a loss, weight decay.
Fraction = Annotated[float, Range(least=0, most=1)]  # Probabilities, shares, decays of an EMA.
FractionBelowOne = Annotated[float, Range(least=0, below=1)]  # Never all: dropout, warm-up.
PositiveFraction = Annotated[float, Range(above=0, most=1)]  # Never none: of an area.
ProperFraction = Annotated[float, Range(above=0, below=1)]  # Neither none nor all: a mask.
Counts = Annotated[tuple[Count, ...], NotEmpty()]  # Widths of layers.


def checked(make: F) -> F:
    """`make` with its arguments checked against the ranges that its annotations give.

    An experiment that it makes says how it was made, for the record of a run (`ssljax.origin`).
    """
    signature = inspect.signature(make)

    @functools.wraps(make)
    def call(*args: Any, **kwargs: Any) -> Any:
        from ssljax.origin import call_noted  # Which imports this module.

        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        bound.arguments = {name: as_flag(x) for name, x in bound.arguments.items()}
        hints = get_type_hints(make, include_extras=True)
        for name, x in bound.arguments.items():
            kind = _bare(hints.get(name, Any))
            if isinstance(x, str) and names_itself(name, kind):
                bound.arguments[name] = kind(x)
        check_arguments(make, bound.arguments)
        return call_noted(make, bound)

    return call  # type: ignore[return-value]


def as_flag(x: Any) -> Any:
    """An argument as a flag would give it: a path as a str, and numbers of NumPy or JAX, alone or
    in a short array, as those of Python; float32 as the shortest decimal number that rounds to it.
    """
    if isinstance(x, os.PathLike):
        return os.fspath(x)
    shape = getattr(x, "shape", None)  # So that neither NumPy nor JAX need be imported.
    if hasattr(x, "tolist") and shape is not None and len(shape) < 2 and sum(shape) < 1000:
        found: Any = x.tolist()
        if str(getattr(x, "dtype", "")).endswith("float32"):
            found = [_shortest(one) for one in found] if shape else _shortest(found)
        return tuple(found) if shape else found
    if isinstance(x, (list, tuple)) and type(x) in (list, tuple):
        new = [as_flag(one) for one in x]
        return x if all(a is b for a, b in zip(new, x, strict=True)) else type(x)(new)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        old = {f.name: getattr(x, f.name) for f in dataclasses.fields(x) if f.init}
        new = {name: y for name, of in old.items() if (y := as_flag(of)) is not of}
        return dataclasses.replace(x, **new) if new else x
    return x


def _shortest(x: float) -> float:
    """The decimal number of fewest digits that rounds to a float32: .2, not .20000000298."""
    import numpy as np  # Which whoever gave a float32 has imported.

    return float(str(np.float32(x)))


def check_arguments(make: Callable, arguments: Mapping[str, Any]) -> None:
    """InputError for the first of a call's arguments that is not in its range."""
    hints = get_type_hints(make, include_extras=True)
    for name, value in arguments.items():
        check_value(name, value, hints.get(name, Any))


def check_value(name: str, value: Any, hint: Any) -> None:
    """InputError where an argument, or a field of it, is not of the type of its annotation, or not
    in its range."""
    for path, one, kind in _typed(name, value, hint):
        if wanted := _wanted(one, kind):
            raise InputError(f"{flag(path)} must be {wanted}, not {one!r}.")
    for path, one, bounds in _bounded(name, value, hint):
        if not bounds.holds(one):
            too_large = isinstance(one, int) and one > LARGEST
            wanted = f"at most {LARGEST}" if too_large else bounds
            raise InputError(f"{flag(path)} must be {wanted}, not {_shown(one)}.")


def _bare(hint: Any) -> Any:
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return hint


def names_itself(name: str, kind: Any) -> bool:
    """Whether an argument is an object, or of a class, that has a field of the argument's name."""
    return dataclasses.is_dataclass(kind) and name in {f.name for f in dataclasses.fields(kind)}


def _typed(path: str, value: Any, hint: Any) -> Iterator[tuple[str, Any, Any]]:
    """(path, value, type) of an argument and of the fields of our own classes in it."""
    if get_origin(hint) is Annotated:
        for note in get_args(hint)[1:]:
            path = _named(path, note)
    yield path, value, _bare(hint)
    if type(value).__module__.startswith("ssljax."):
        for field in _fields_of(path, value):
            yield from _typed(*field)


def _fields_of(path: str, value: Any) -> Iterator[tuple[str, Any, Any]]:
    """(path, value, annotation) of each field of a dataclass; none of another value."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return
    fields = {f.name for f in dataclasses.fields(value)} - {"parent", "name"}
    prefix = "" if _without_prefix(type(value)) else f"{path}." if path else ""
    for name, kind in get_type_hints(type(value), include_extras=True).items():
        if name in fields:
            yield f"{prefix}{name}", getattr(value, name), kind


def _wanted(value: Any, hint: Any) -> str:
    """What a value should be that is clearly not of a type; empty for one that may be."""
    hint = _bare(hint)
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "" if value in inner else f"one of {', '.join(map(str, inner))}"
    if origin in (Union, types.UnionType):
        found = [_wanted(value, option) for option in inner]
        return "" if "" in found else " or ".join(dict.fromkeys(found))
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return "a list"
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return next(filter(None, map(_wanted, value, kinds)), "")
    if hint in SIMPLE:
        kinds, wanted = SIMPLE[hint]
        of_bool = isinstance(value, bool) and hint is not bool
        return wanted if of_bool or not isinstance(value, kinds) else ""
    if dataclasses.is_dataclass(hint) and isinstance(value, (*SIMPLE, list, tuple, dict)):
        return f"of class {hint.__name__}"  # pyright: ignore[reportAttributeAccessIssue] - it is a class
    return ""


def flag(path: str) -> str:
    """The flag of an argument: head.last_bias is --head.last-bias."""
    return "--" + path.replace("_", "-")


def _shown(x: Any) -> str:
    if isinstance(x, (list, tuple)):
        return " ".join(map(str, x)) or "empty"
    return str(x)


def _bounded(path: str, value: Any, hint: Any) -> Iterator[tuple[str, Any, Range | NotEmpty]]:
    """(path, value, range) of every number of an argument that has a range, by its annotation."""
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        applies = value is not None and not isinstance(value, (str, bool))
        for note in notes:
            path = _named(path, note)
            if isinstance(note, (Range, NotEmpty)) and applies:
                wants_list = isinstance(note, NotEmpty)
                if wants_list == isinstance(value, (list, tuple)):
                    yield path, value, note
        yield from _bounded(path, value, inner)
    elif get_origin(hint) in (Union, types.UnionType):
        for option in get_args(hint):
            if _fits(value, option):
                yield from _bounded(path, value, option)
                break
    elif get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        kinds = get_args(hint)
        kinds = kinds[:1] * len(value) if kinds[1:] == (...,) else kinds
        for one, kind in zip(value, kinds, strict=False):
            yield from _bounded(path, one, kind)
    else:
        for field in _fields_of(path, value):
            yield from _bounded(*field)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of one option of a union."""
    hint = _bare(hint)
    origin = get_origin(hint) or hint
    if origin is float:
        return isinstance(value, (int, float))
    if not isinstance(origin, type):
        return False
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = get_args(hint)
        return not kinds or kinds[1:] == (...,) or len(kinds) == len(value)
    return isinstance(value, origin)


def _named(path: str, note: Any) -> str:
    """The path under which tyro has an argument, which tyro.conf.arg(name=...) changes."""
    name = getattr(note, "name", None)
    if not isinstance(name, str) or type(note).__name__ != "_ArgConfig":
        return path
    return ".".join([*path.split(".")[:-1], name] if name else path.split(".")[:-1])


def is_unnamed(hint: Any, value: Any = None) -> bool:
    """Whether the flags of an argument's fields go without the argument's name."""
    named_so = any(getattr(x, "name", None) == "" for x in getattr(hint, "__metadata__", ()))
    return named_so or (dataclasses.is_dataclass(value) and _without_prefix(type(value)))


def _without_prefix(kind: type) -> bool:
    """Whether tyro gives the fields of a class as flags without the argument's name before them."""
    import tyro

    marks = getattr(kind, "__tyro_markers__", ())
    return tyro.conf.OmitArgPrefixes in marks
