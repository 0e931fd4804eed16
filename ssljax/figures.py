"""Figures of a run: its pictures, animations, feature maps and texts, the last and some of each
evaluation.

`figures/NAME.png`, `.gif` or `.txt` is the last one. `figures/by_step/NAME/STEP.png`, `.gif`,
`.txt` or, for a feature map, `.json` are those of at most `MOST` steps: whenever there are more,
the one whose neighbours are closest is dropped, but neither the first nor the last.
"""

import json
import pathlib
import shutil
from typing import Any, TYPE_CHECKING

import numpy as np

from ssljax.record import write_whole

if TYPE_CHECKING:
    from ssljax.evals.pictures import FeatureMap

MOST = 16  # Steps of which a figure of a name is kept, at most.
CELL = 32  # Largest side of a thumbnail, in pixels.
SHEET = 40  # Thumbnails in a row of their sheet.
FRAME, LAST_FRAME = 100, 2000  # Milliseconds that frames of an animation are shown, and the last.


def figure_name(name: str) -> str:
    """Name of the files of "EVALUATOR/KEY"."""
    return name.replace("/", "_")


def write_picture(workdir: pathlib.Path, step: int, name: str, pixels: np.ndarray) -> None:
    """Writes a picture (height, width, 3) uint8, or an animation (frames, height, width, 3)."""
    from PIL import Image

    last, kept = _places(workdir, step, name, "gif" if pixels.ndim == 4 else "png")
    if pixels.ndim == 4:
        first, *others = (Image.fromarray(frame) for frame in pixels)
        shown = [FRAME] * len(others) + [LAST_FRAME]
        first.save(last, save_all=True, append_images=others, duration=shown, loop=0)
    else:
        Image.fromarray(pixels).save(last)
    shutil.copyfile(last, kept)
    _thin(kept.parent)


def write_text(workdir: pathlib.Path, step: int, name: str, text: str) -> None:
    """Writes a text, with a line break after it."""
    last, kept = _places(workdir, step, name, "txt")
    for file in (last, kept):
        file.write_text(text + "\n", encoding="utf-8")
    _thin(kept.parent)


def write_map(
    workdir: pathlib.Path, step: int, name: str, found: "FeatureMap", pixels: np.ndarray
) -> None:
    """Writes a feature map: `pixels` as the last picture; its points, classes and thumbnails.

    Points are scaled to [0, 1] with their aspect ratio. One sheet has the thumbnails of all steps.
    """
    from PIL import Image

    last, kept = _places(workdir, step, name, "json")
    Image.fromarray(pixels).save(last.with_name(f"{figure_name(name)}.png"))
    if found.images is not None:
        thumbnails(found.images).save(kept.parent / "thumbnails.webp", quality=80)
    low, size = found.points.min(0), np.ptp(found.points, axis=0)
    scaled = (found.points - low - size / 2) / max(size.max(), 1e-12) + 0.5
    content = {
        "points": np.round(scaled.astype(float), 4).tolist(),
        "labels": np.asarray(found.labels).tolist(),
        "names": list(found.class_names),
    }
    write_whole(kept, json.dumps(content))
    _thin(kept.parent)


def thumbnails(images: np.ndarray, columns: int = SHEET) -> Any:
    """A sheet of images (n, H, W, 1 or 3) uint8, `columns` in a row of cells of `CELL` pixels.

    Each fills its cell, enlarged or reduced, with its aspect ratio.
    """
    from PIL import Image

    height, width = images.shape[1:3]
    scale = CELL / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    sheet = Image.new("RGB", (columns * CELL, -(-len(images) // columns) * CELL))
    for i, pixels in enumerate(images):
        small = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
        row, column = divmod(i, columns)
        at = (column * CELL + (CELL - size[0]) // 2, row * CELL + (CELL - size[1]) // 2)
        sheet.paste(small.resize(size, how), at)
    return sheet


def kept_figures(workdir: pathlib.Path) -> dict[str, dict[int, pathlib.Path]]:
    """{name of the files: {step: file}} of the figures that are kept, in the order of steps."""
    folders = workdir / "figures" / "by_step"
    found: dict[str, dict[int, pathlib.Path]] = {}
    for folder in sorted(folders.iterdir()) if folders.is_dir() else ():
        if steps := _steps(folder):
            found[folder.name] = steps
    return found


def drop_after(workdir: pathlib.Path, step: int) -> None:
    """Drops figures of later steps, which a run that resumes from `step` makes again."""
    for files in kept_figures(workdir).values():
        for at, file in files.items():
            if at > step:
                file.unlink()


def _places(
    workdir: pathlib.Path, step: int, name: str, suffix: str
) -> tuple[pathlib.Path, pathlib.Path]:
    name = figure_name(name)
    last = workdir / "figures" / f"{name}.{suffix}"
    kept = workdir / "figures" / "by_step" / name / f"{step:09d}.{suffix}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    return last, kept


def _steps(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    return {int(f.stem): f for f in sorted(files) if f.stem.isdigit()}


def _thin(folder: pathlib.Path) -> None:
    files = _steps(folder)
    steps = list(files)
    if len(steps) > MOST:
        least = min(range(1, len(steps) - 1), key=lambda i: steps[i + 1] - steps[i - 1])
        files[steps[least]].unlink()
