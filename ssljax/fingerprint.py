"""Fingerprints of what a run reads: the content of data sets and weights, wherever they lie."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import contextvars
import functools
import hashlib
import os
import pathlib
from typing import Any, TypeVar

import jax
import numpy as np

from ssljax.errors import InputError

F = TypeVar("F", bound=Callable)
# {name: {part: {"count", "digest", "form"}}}; no form of weights, and of texts read end to end.
Read = dict[str, dict[str, dict[str, Any]]]

_read: contextvars.ContextVar[Read | None] = contextvars.ContextVar("read", default=None)


@contextlib.contextmanager
def reading() -> Iterator[Read]:
    """Context in which readers report what they read; gives {name: {part: fingerprint}}.

    It is then also what was read in a context around it.
    """
    found: Read = {}
    token = _read.set(found)
    try:
        yield found
    finally:
        _read.reset(token)
        if (around := _read.get()) is not None:
            for name, parts in found.items():
                around[name] = parts | around.get(name, {})


def report(name: str, part: str, count: int, content: Any, form: Any = None) -> None:
    """Notes the fingerprint of what was read under a name, as it was given, if anybody asks."""
    read = _read.get()
    if read is not None and part not in read.setdefault(name, {}):
        found = {"count": count, "digest": digest(content)}
        read[name][part] = found | ({"form": form} if form else {})


def content_of(parts: Mapping[str, Mapping[str, Any]] | None) -> dict[str, tuple[int, str]]:
    """{part: (count, digest)} of what was read under a name: what two runs are compared by."""
    return {part: (of["count"], of["digest"]) for part, of in (parts or {}).items()}


def changed(then: Read, now: Read) -> list[str]:
    """Names under which another set of examples was read then than now."""
    return [
        name
        for name in sorted(then.keys() & now.keys())
        if any(
            then[name][part]["digest"] != now[name][part]["digest"]
            for part in then[name].keys() & now[name].keys()
            if not part.startswith("weights")
        )
    ]


def forms_of(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{part: {"count", "form"}} of what was read under a name: what a stand-in is made of."""
    return {
        part: {"count": of["count"], "form": of["form"]}
        for part, of in parts.items()
        if "form" in of
    }


def reported(
    what: str,
    form: Callable[[Any], dict[str, Any] | None] | None = None,
    absent: Callable[[Mapping[str, Any], int, int], Any] | None = None,
) -> Callable[[F], F]:
    """Decorator of a reader `read(name, split, ...)` of sets that reports what it returns.

    Sets read within it, to make this one up, are not reported. A set's content is its attributes
    `labels`, `class_names` and, where it is not in memory, `files`, else `image` or `text`. Its
    `form(found)`, by default `form_of`, goes into the record, and `absent(form, count, seed)`, by
    default noise, stands in for a set of texts that can't be read (`described.stand_in`). An empty
    name, which as a path is the current folder, is an InputError.
    """

    def decorate(read: F) -> F:
        @functools.wraps(read)
        def call(name: str, split: str, *args: Any, **kwargs: Any) -> Any:
            if not name.strip():
                raise InputError(
                    "The name of the data is empty: give a set or a folder as --data (of the "
                    "current folder: .)."
                )
            part = f"{'training' if split == 'train' else split} {what}"
            how = [str(x) for x in args if x]
            how += [k if v is True else f"{k} {v}" for k, v in kwargs.items() if v]
            part += f" ({', '.join(how)})" if how else ""
            asked = _read.get()
            token = _read.set(None)
            try:
                found = read(name, split, *args, **kwargs)
                _check_unchanged(name, part, found)
            except InputError:
                from ssljax.data.described import stand_in  # Whose package imports this module.

                if (found := stand_in(name, part, absent)) is None:
                    raise
            finally:
                _read.reset(token)
            if asked is not None:
                report(name, part, len(found), _content(found), (form or form_of)(found))
            return found

        return call  # type: ignore[return-value]

    return decorate


def _content(found: Any) -> dict[str, Any]:
    names = ("image", "text", "files", "labels", "class_names")
    content = {k: getattr(found, k, None) for k in names}
    return {k: v for k, v in content.items() if not callable(v)}


def _check_unchanged(name: str, part: str, found: Any) -> None:
    """InputError where a run that `described.standing_in` is for read something else."""
    from ssljax.data.described import digest_read

    known = digest_read(name, part)
    if known and digest(_content(found)) != known:
        raise InputError(f"{name} is not what the run read: put that back.")


def form_of(found: Any) -> dict[str, Any] | None:
    """Shape and type of the examples of a set, and its classes; None of texts."""
    if not (hasattr(found, "shape") and len(found)):
        return None
    example = found.read(np.arange(1))
    return {
        "shape": list(found.shape),
        "dtype": str(example["image"].dtype),
        "classes": None if found.labels is None else list(found.class_names),
        "aspects": "aspect" in example,
    }


def of_resident(arrays: Any) -> Read:
    """Fingerprint of the arrays that a training set has in memory; of no name."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(arrays)]
    if not leaves:
        return {}
    count = leaves[0].shape[0] if leaves[0].ndim else 1
    return {"": {"training examples": {"count": count, "digest": digest(arrays)}}}


def digest(content: Any) -> str:
    """sha256, cut to 16 digits, of a tree of arrays, texts and numbers."""
    found = hashlib.sha256()
    for path, x in jax.tree_util.tree_flatten_with_path(content, is_leaf=_is_text)[0]:
        found.update(jax.tree_util.keystr(path, simple=True, separator="/").encode())
        if _is_text(x):
            for text in [x] if isinstance(x, str) else x:
                data = text.encode("utf-8", "surrogatepass")
                found.update(len(data).to_bytes(8, "little") + data)
        else:
            x = np.asarray(x)
            found.update(f"{x.dtype}{x.shape}".encode())
            found.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:16]


def _is_text(x: Any) -> bool:
    return isinstance(x, str) or (isinstance(x, list) and bool(x) and isinstance(x[0], str))


def names_and_sizes(
    files: Sequence[pathlib.Path | str], top: pathlib.Path, most: int = 100_000
) -> str:
    """Lines of the names of files within a folder, with the sizes of at most about `most`."""
    every = -(-len(files) // most)  # A million files take long to ask over a network.
    sizes = [f" {os.stat(file).st_size}" if i % every == 0 else "" for i, file in enumerate(files)]
    start = len(os.path.join(top, ""))  # `Path.relative_to` takes several times as long.
    names = [os.fspath(file)[start:].replace(os.sep, "/") for file in files]
    return "\n".join(f"{name}{size}" for name, size in zip(names, sizes, strict=True))
