"""Files for TensorBoard: events, written at once, so that neither a kill nor a full disk leaves any
in memory, and features for its projector."""

from collections.abc import Iterator, Mapping
import logging
import math
import os
import pathlib
import struct
import time
from typing import Any, TYPE_CHECKING

import numpy as np

from ssljax import figures
from ssljax.record import write_whole

if TYPE_CHECKING:
    from ssljax.evals.pictures import FeatureMap

logging.getLogger("tensorboardX").setLevel(logging.ERROR)  # It warns of NaN, which a run names.
MOST_FEATURES = 1_000_000  # Numbers that the projector is given, at most.


class Board:
    """Events in a new file of `folder`; TensorBoard drops earlier ones of steps after `start`."""

    def __init__(self, folder: pathlib.Path, start: int):
        messages = _messages()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        # TensorBoard reads files by their names' order.
        seconds, rest = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds}.{rest:09d}.{os.uname().nodename}"
        # Unbuffered: Python would write what is left of a buffer again when the process ends.
        self._file = open(folder / name, "xb", buffering=0)  # noqa: SIM115
        begins = messages.SessionLog(status=messages.SessionLog.START)
        self._write(
            messages.Event(wall_time=time.time(), file_version="brain.Event:2"),
            messages.Event(wall_time=time.time(), step=start + 1, session_log=begins),
        )

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers of a step, or lists of one for each seed, of which the mean is shown."""
        from tensorboardX.summary import scalar

        self._summaries(step, *(scalar(k, float(np.mean(v))) for k, v in values.items()))

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture (height, width, 3) uint8."""
        from tensorboardX.summary import image

        self._summaries(step, image(name, pixels, dataformats="HWC"))

    def text(self, step: int, name: str, text: str) -> None:
        """A text, shown as it is."""
        from tensorboardX import summary

        self._summaries(step, summary.text(name, f"```\n{text}\n```"))

    def settings(self, values: Mapping[str, Any]) -> None:
        """Settings of the run, for the table of HParams, where scalars are its metrics.

        There is no list of all settings with it: from that of one run TensorBoard would make the
        columns of all runs of a folder.
        """
        from tensorboardX import summary

        shown = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in values.items()}
        self._summaries(0, summary.hparams(shown, {})[1])

    def finished(self, step: int) -> None:
        """The run has reached its last step: its state in HParams is success."""
        from tensorboardX import summary

        self._summaries(step, summary.hparams({}, {})[2])

    def features(self, name: str, found: "FeatureMap") -> None:
        """Features for the projector, with classes and thumbnails, in place of earlier ones."""
        if found.features is None:
            return
        n = min(len(found.features), max(1, MOST_FEATURES // found.features.shape[1]))
        folder = self._folder / "projector" / figures.figure_name(name)
        folder.mkdir(parents=True, exist_ok=True)
        np.savetxt(folder / "tensors.tsv", found.features[:n], "%.4g", "\t")
        labels = [str(found.class_names[i]).replace("\n", " ") for i in found.labels[:n]]
        text = "".join(f"{label or '-'}\n" for label in labels)
        (folder / "metadata.tsv").write_text(text, encoding="utf-8")
        if found.images is not None:
            columns = math.ceil(math.sqrt(n))
            sheet = figures.thumbnails(found.images[:n], columns)
            side = columns * figures.CELL  # TensorBoard takes every sheet for a square.
            sheet.crop((0, 0, side, side)).save(folder / "sprite.png")
        write_whole(self._folder / "projector_config.pbtxt", _projector(self._folder))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _summaries(self, step: int, *summaries: Any) -> None:
        now, event = time.time(), _messages().Event
        self._write(*(event(wall_time=now, step=step, summary=s) for s in summaries))

    def _write(self, *events: Any) -> None:
        data = b"".join(_record(event.SerializeToString()) for event in events)
        while data:
            data = data[self._file.write(data) :]


def read_scalars(folder: pathlib.Path) -> set[tuple[str, int]]:
    """(name, step) of the scalars that TensorBoard shows: those before the damage in each file."""
    shown: set[tuple[str, int]] = set()
    for file in sorted(folder.glob("events.*")) if folder.is_dir() else ():
        for event in _events(file.read_bytes()):
            if event.HasField("session_log"):
                shown = {(name, step) for name, step in shown if step < event.step}
            shown |= {
                (v.tag, event.step) for v in event.summary.value if v.HasField("simple_value")
            }
    return shown


def _projector(folder: pathlib.Path) -> str:
    """The projector's configuration, of the features that lie in a folder of events."""
    parts = []
    for path in sorted((folder / "projector").iterdir()):
        lines = [f'tensor_name: "{path.name}"']
        for kind, file in (("tensor", "tensors.tsv"), ("metadata", "metadata.tsv")):
            lines.append(f'{kind}_path: "projector/{path.name}/{file}"')
        if (path / "sprite.png").exists():
            side = f"single_image_dim: {figures.CELL}"
            image = f'image_path: "projector/{path.name}/sprite.png"'
            lines.append(f"sprite {{ {image} {side} {side} }}")
        parts.append("embeddings {\n  " + "\n  ".join(lines) + "\n}\n")
    return "".join(parts)


def _messages() -> Any:
    """TensorBoard's messages, which protobuf makes when they are imported: no checker sees them."""
    from tensorboardX.proto import event_pb2

    return event_pb2


def _record(data: bytes) -> bytes:
    size = struct.pack("<Q", len(data))
    return size + _checksum(size) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    from tensorboardX.record_writer import masked_crc32c

    return struct.pack("<I", masked_crc32c(data))


def _events(data: bytes) -> Iterator[Any]:
    at, event = 0, _messages().Event
    while at + 12 <= len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        record = data[at : at + size + 16]
        if record != _record(record[12:-4]):
            return
        yield event.FromString(record[12:-4])
        at += size + 16
