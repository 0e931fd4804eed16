"""Origin of an experiment: the call that made it, which a run's record keeps to make it again."""

from collections.abc import Callable, Mapping
import dataclasses
from dataclasses import dataclass, field
import inspect
import os
from typing import Any, get_type_hints

from ssljax import fingerprint, processes, record
from ssljax.ranges import is_unnamed

BY_NAME = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


@dataclass(frozen=True)
class Origin:
    """What a run's record has of how its experiment was made."""

    computes: Mapping[str, Any] = field(default_factory=dict)
    """Arguments as JSON (`record.computes_of`)."""
    source: str | None = None
    """File of the function that made it."""
    function: str = ""
    """Name of that function."""
    read: fingerprint.Read = field(default_factory=dict)
    """Fingerprints of the data and weights that it has read."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults by dotted name, for arguments that an older record lacks (`record.defaults_of`)."""
    said: tuple[str, ...] = ()
    """Lines on the data."""
    unnamed: tuple[str, ...] = ()
    """Arguments whose fields are flags without the argument's name."""
    num_steps: int = 0
    """Steps, which may be replaced afterwards."""


def call_noted(make: Callable, given: inspect.BoundArguments) -> Any:
    """What `make` returns for arguments, defaults among them; an experiment with its origin."""
    from ssljax.experiment import Experiment  # Which has an `Origin`.

    with fingerprint.reading() as read, processes.hearing() as said:
        by_name = {p.kind for p in given.signature.parameters.values()} <= BY_NAME
        made = make(**given.arguments) if by_name else make(*given.args, **given.kwargs)
    if not isinstance(made, Experiment):
        return made
    hints = get_type_hints(inspect.unwrap(make), include_extras=True)
    source = inspect.getsourcefile(inspect.unwrap(make))
    return dataclasses.replace(
        made,
        origin=Origin(
            record.computes_of(given.arguments),
            source if source and os.path.isfile(source) else None,  # Not of a notebook's cell.
            getattr(make, "__name__", ""),
            read,
            record.defaults_of(make, given.arguments),
            tuple(said),
            tuple(k for k, x in given.arguments.items() if is_unnamed(hints.get(k), x)),
            int(made.num_steps),
        ),
    )
