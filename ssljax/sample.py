"""Samples of a run: pictures of a generator, or texts of a language model.

    python -m ssljax.sample runs/ddpm -o samples --n 1000 --guidance 3 --sampling-steps 100
    python -m ssljax.sample runs/cvae -o cats.png --label cat
    python -m ssljax.sample runs/gpt --prompt "The list" --n 3 --temperature 0.5

Arguments of the run's experiment may follow, in place of those that the run was made with: those of
sampling change what is drawn, those of training nothing; none may change the shapes of the net.

| output | content |
|---|---|
| a folder | pictures of their own, 00000.png, 00001.png, ...; a new or an empty folder |
| `.png` | one sheet of all |
| `.npz` | array `samples`: uint8 (n, h, w, c), as tools for FID read it, or points (n, 2) |
| `.txt`, `.jsonl` | texts, each under a line with its number; or a line {"text": ...} for each |
| none | texts, printed |
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
import json
import os
import pathlib
import tempfile
from typing import Annotated, Any

import numpy as np
from PIL import Image
import tyro

from ssljax import cli, flags
from ssljax.backends import start_backends
from ssljax.errors import InputError
from ssljax.evals.pictures import grid
from ssljax.evals.texts import set_apart
from ssljax.loaded import Kind, kind_of, load, Loaded
from ssljax.ranges import Count, CountOrZero
from ssljax.run import Run

SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "texts": (".txt", ".jsonl"),
    "pictures": (".npz", "", ".png"),
    "points": (".npz",),
}


@dataclass(frozen=True)
class Command:
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="PATH")] = ""
    """Folder or file to write, as the table says; texts are printed without it."""
    n: Count = 64
    """Number of samples."""
    seed: CountOrZero = 0
    """Seed of the noise: the same seed and --batch-size give the same samples."""
    label: str = ""
    """Class of the samples, its name or its number; of all classes without it."""
    prompt: str = ""
    """Text that samples of a language model continue."""
    tokens: Count = 400
    """Tokens that continue the prompt."""
    batch_size: Count = 64
    """Samples that are drawn at once."""
    lane: CountOrZero = 0
    """Index of the seed in the run, from 0."""


Command.__doc__ = __doc__


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    flags.run_command(Command, _run, args, others=True)


def _run(asked: Command, others: Sequence[str]) -> None:
    start_backends()
    out = pathlib.Path(asked.out).expanduser() if asked.out else None
    if out is not None:
        _check_out(out)
    run = load(asked.run, asked.lane)
    if others:
        run = replace(run, make=run.arguments[0], changes=_changes(run, others))
    if out is None and run.draws != "texts":
        raise InputError("Give -o with a folder, a .png or an .npz for the samples.")
    if out is not None:
        _check_kind(out, run.draws)
    found = run.sample(
        asked.n,
        asked.seed,
        label=asked.label or None,
        prompt=asked.prompt,
        tokens=asked.tokens,
        batch_size=asked.batch_size,
    )
    if out is None:
        print(set_apart(found))
        return
    write_samples(found, out)
    print(f"{out}: {len(found):,} samples")


def _changes(run: Loaded, args: Sequence[str]) -> dict[str, Any]:
    """Arguments of a run's experiment that flags change."""
    make, arguments = run.arguments
    options, found = cli.parse(make, args, arguments)
    if options != Run():
        raise InputError("Samples are drawn from a finished run: leave flags of --run out.")
    return {name: x for name, x in found.items() if x != arguments.get(name)}


def _check_out(out: pathlib.Path) -> None:
    """InputError where no samples can be written to a path."""
    if out.suffix in (".png", ".npz", ".txt", ".jsonl"):
        return
    if out.suffix:
        raise InputError(f"Give -o with a folder, a .png, .npz, .txt or .jsonl, not {out.name}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is no empty folder: give a new one.")


def _check_kind(out: pathlib.Path, kind: Kind) -> None:
    """InputError where samples of a kind can't be written to a path."""
    if out.suffix not in SUFFIXES[kind]:
        wanted = " or ".join(x or "a folder" for x in SUFFIXES[kind])
        raise InputError(f"Give -o with {wanted} for {kind}, not {out.name}.")


def write_samples(found: Any, out: str | pathlib.Path) -> None:
    """Writes what `Loaded.sample` gives to a folder or a file, whole or not at all.

    InputError where they are of another kind than the ending, and as for a folder with files.
    """
    out = pathlib.Path(out).expanduser()
    _check_out(out)
    _check_kind(out, "texts" if isinstance(found, list) else kind_of(found))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=out.parent) as scratch:
        part = pathlib.Path(scratch) / out.name
        if out.suffix == ".txt":
            part.write_text(set_apart(found) + "\n", "utf-8")
        elif out.suffix == ".jsonl":
            lines = (json.dumps({"text": x}, ensure_ascii=False) for x in found)
            part.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        elif out.suffix == ".npz":
            np.savez(part, samples=found)
        elif out.suffix == ".png":
            Image.fromarray(_sheet(np.asarray(found))).save(part)
        else:
            part.mkdir()
            for i, x in enumerate(found):
                Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x).save(part / f"{i:05}.png")
            if out.exists():
                out.rmdir()
        os.replace(part, out)


def _sheet(pictures: np.ndarray) -> np.ndarray:
    """Pictures in rows and columns, about as many of both, with black ones at the end."""
    columns = int(np.ceil(len(pictures) ** 0.5))
    black = np.zeros((-len(pictures) % columns, *pictures.shape[1:]), pictures.dtype)
    return grid(np.concatenate([pictures, black]).reshape(-1, columns, *pictures.shape[1:]))


if __name__ == "__main__":
    main()
