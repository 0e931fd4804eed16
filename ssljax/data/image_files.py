"""Sets of image files in a folder."""

from dataclasses import replace
import pathlib

from ssljax.data.decode import decoder
from ssljax.data.folders import find_files, IMAGES
from ssljax.data.sources import fits_in_memory, OnDisk, Source
from ssljax.fingerprint import names_and_sizes


def image_folder(
    root: pathlib.Path,
    split: str,
    size: int,
    named: str = "",
    validation: bool = False,
    *,
    whole: bool = False,
    part: float = 1.0,
    skip_bad: bool = False,
) -> tuple[Source, str]:
    """The images of a split of a folder, and the line to be printed; splits are of `find_files`.

    The headers of both splits decide how images are decoded (see `decoder`), so that both are gray,
    or both in colour. InputError for images of different sizes without a size to resize them to,
    and for a file that can't be read.
    """
    found = find_files(root, IMAGES, named, validation)
    every = found.names["train"] + found.names["test"]
    decode = decoder(
        lambda i: root / every[i], len(every), size, whole, part, skip_bad, where=str(root)
    )
    line = f"{found.line}. {decode.note}" if decode.note else found.line
    paths, labels, classes = found.paths(split), found.labels[split], found.classes(split)
    source = OnDisk(
        lambda i: decode(paths[i]),
        labels,
        classes,
        (decode.size, decode.size, decode.channels),
        count=len(paths),
        aspects=decode.whole,
        skip_bad=skip_bad,
    )
    if not fits_in_memory(len(source), source.shape):
        return replace(source, files=names_and_sizes(paths, root)), line
    return source.in_memory(), line
