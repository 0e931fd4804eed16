"""Evaluator: a function of the state, with what a run needs to know of its numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flax.errors import ScopeParamShapeError

from ssljax.errors import InputError

Tree = Any
# Numbers, texts, pictures (H, W, 3) uint8 and animations (frames, H, W, 3) uint8, by name.
Metrics = Mapping[str, Any]
Direction = Literal["higher", "lower"]


@dataclass(frozen=True, eq=False)
class Evaluator:
    """`evaluate(state)` gives numbers, pictures and texts by name.

    Any callable does as an evaluator of a run. One of this class is also traced before training,
    its numbers are compared with the untrained net's and with their floors, and it is run for the
    first seed alone where it makes only pictures or texts.
    """

    evaluate: Callable[[Tree], Metrics]
    pictures: bool = False  # Whether it makes pictures and texts alone.
    # Of numbers that have one. A run's main number is the first of the first evaluator with any.
    better: Mapping[str, Direction] = field(default_factory=dict)
    # By name of a number, the name of another of the same result that a trained net should beat.
    floors: Mapping[str, str] = field(default_factory=dict)
    # In the same way, the name of what held-out examples have.
    real: Mapping[str, str] = field(default_factory=dict)
    # A sentence on numbers of a trained net that show a collapse, else "".
    warning: Callable[[Mapping[str, float]], str] | None = None
    captions: Mapping[str, str] = field(default_factory=dict)  # Of pictures and texts.
    # What numbers of two runs must have in common to be comparable, such as the k of kNN, as JSON.
    settings: Mapping[str, Any] = field(default_factory=dict)
    trace: Callable[[Tree], Any] | None = None  # Raises InputError on shapes that don't fit.
    encode: Callable[[Tree, Any], Any] | None = None  # The features that are evaluated, if any.
    bank: Any = None  # The set that a classifier of the features is made from, if any.
    queries: Any = None  # The set that the numbers are measured on, if any.

    def __call__(self, state: Tree) -> Metrics:
        return self.evaluate(state)


def warnings(
    results: Mapping[str, Sequence[float]], evals: Mapping[str, Any], seeds: Sequence[int]
) -> list[str]:
    """Sentences of evaluators on numbers that show a collapse, with the seed if there are several.

    `results` has a number for each seed.
    """
    lines = []
    for name, evaluate in evals.items():
        if not isinstance(evaluate, Evaluator) or evaluate.warning is None:
            continue
        own = {
            k.removeprefix(f"{name}/"): v for k, v in results.items() if k.startswith(f"{name}/")
        }
        for i, seed in enumerate(seeds):
            if own and (sentence := evaluate.warning({k: v[i] for k, v in own.items()})):
                lines.append(f"! {sentence}" + (f" (seed {seed})" if len(seeds) > 1 else ""))
    return lines


def trace_evaluator(evaluate: Callable[[Tree], Metrics], state: Tree) -> None:
    """Traces an evaluator on `state`, a tree of ShapeDtypeStructs, without computing anything.

    InputError for what could not be evaluated. Callables of other classes are not tried.
    """
    if not isinstance(evaluate, Evaluator) or evaluate.trace is None:
        return
    try:
        evaluate.trace(state)
    except ScopeParamShapeError as e:
        reason = " ".join(str(e).split(" (http")[0].split())
        raise InputError(
            "The net does not fit the examples that it would be evaluated on: do the training and "
            f"the test set have one shape? ({reason})"
        ) from e
