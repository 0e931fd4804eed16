"""Cache of decoded data sets, tokens and compiled programs, kept between runs."""

import contextlib
import hashlib
import os
import pathlib
from typing import Any
import zipfile
import zlib

import numpy as np


def cache_dir() -> pathlib.Path:
    """Folder of the cache: $SSLJAX_CACHE, or `ssljax` in the user's cache folder."""
    default = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ssljax"
    return pathlib.Path(os.environ.get("SSLJAX_CACHE", default)).expanduser()


def cache_file(key: str) -> pathlib.Path:
    """File in which the arrays of `key` are cached."""
    return cache_dir() / "data" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


def read_cache(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    """Arrays of a cached file, or None where it is missing or damaged, which removes it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        with contextlib.suppress(OSError):
            path.unlink()
        return None


def store(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes arrays to a cached file, whole or not at all.

    A cache that can't be written must not stop a run: the arrays are only decoded again.
    """
    part = path.with_name(f"{path.stem}.{os.getpid()}.part.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        named: dict[str, Any] = arrays  # `savez` has an argument that is no array, too.
        np.savez(part, **named)
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # Where nothing can be written, nothing can be removed.
            part.unlink()


def use_compilation_cache() -> None:
    """Keeps compiled programs between processes, unless JAX has a folder for them already."""
    import jax

    options: Any = jax.config  # Its attributes are made when JAX is imported.
    if not options.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    repair_compilation_cache()


def repair_compilation_cache() -> None:
    """Removes entries that can't be read from JAX's compilation cache, which else keeps them."""
    import jax
    from jax._src import compilation_cache

    read = compilation_cache.get_executable_and_time
    if hasattr(read, "repairs"):
        return

    def read_or_remove(key: str, *args: Any) -> tuple[Any, int | None]:
        try:
            return read(key, *args)
        except Exception:  # Of zlib, zstandard, struct or XLA.
            options: Any = jax.config  # Its attributes are made when JAX is imported.
            folder = pathlib.Path(options.jax_compilation_cache_dir)
            with contextlib.suppress(OSError):
                (folder / f"{key}-cache").unlink()
            return None, None

    read_or_remove.repairs = True  # pyright: ignore[reportFunctionMemberAccess] - a mark
    compilation_cache.get_executable_and_time = read_or_remove
