"""Fingerprints of what a run reads: the content of data sets and weights, wherever they lie."""

from collections.abc import Callable, Iterator, Sequence
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
Read = dict[str, dict[str, dict[str, Any]]]  # {name: {part: {"count", "digest"}}}

_read: contextvars.ContextVar[Read | None] = contextvars.ContextVar("read", default=None)


@contextlib.contextmanager
def reading() -> Iterator[Read]:
    """Context in which readers report what they read; gives {name: {part: fingerprint}}."""
    found: Read = {}
    token = _read.set(found)
    try:
        yield found
    finally:
        _read.reset(token)


def report(name: str, part: str, count: int, content: Any) -> None:
    """Notes the fingerprint of what was read under a name, as it was given, if anybody asks."""
    read = _read.get()
    if read is not None and part not in read.setdefault(name, {}):
        read[name][part] = {"count": count, "digest": digest(content)}


def reported(what: str) -> Callable[[F], F]:
    """Decorator of a reader `read(name, split, ...)` of sets that reports what it returns.

    Sets read within it, to make this one up, are not reported. A set's content is its attributes
    `labels`, `class_names` and, where it is not in memory, `files`, else `image` or `text`. An
    empty name, which as a path is the current folder, is an InputError.
    """

    def decorate(read: F) -> F:
        @functools.wraps(read)
        def call(name: str, split: str, *args: Any, **kwargs: Any) -> Any:
            if not name.strip():
                raise InputError(
                    "The name of the data is empty: give a set or a folder as --data (of the "
                    "current folder: .)."
                )
            asked = _read.get()
            token = _read.set(None)
            try:
                found = read(name, split, *args, **kwargs)
            finally:
                _read.reset(token)
            if asked is not None:
                names = ("image", "text", "files", "labels", "class_names")
                content = {k: getattr(found, k, None) for k in names}
                content = {k: v for k, v in content.items() if not callable(v)}
                part = f"{'training' if split == 'train' else split} {what}"
                form = [str(x) for x in args if x]
                form += [k if v is True else f"{k} {v}" for k, v in kwargs.items() if v]
                form = ", ".join(form)
                report(name, f"{part} ({form})" if form else part, len(found), content)
            return found

        return call  # type: ignore[return-value]

    return decorate


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
