"""Files for TensorBoard and values for W&B: settings, pictures, texts and features."""

import pathlib
import re
import sys
from types import SimpleNamespace

import numpy as np
from PIL import Image
import pytest

from ssljax import figures, InputError, logs, Run, train
from ssljax.data import images
from ssljax.evals.pictures import FeatureMap
from ssljax.tensorboard import _events, Board
from tests.tiny import made_with, tiny

pytestmark = pytest.mark.usefixtures("one_device")


def summaries(folder: pathlib.Path) -> list:
    """(step, tag, value) of all events, in order."""
    data = b"".join(file.read_bytes() for file in sorted(folder.glob("events.*")))
    return [(event.step, v.tag, v) for event in _events(data) for v in event.summary.value]


def hparams(folder: pathlib.Path) -> dict[str, list]:
    """Messages of the plugin for HParams by their tag."""
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    found: dict[str, list] = {}
    for _, tag, value in summaries(folder):
        if value.metadata.plugin_data.plugin_name == "hparams":
            message = HParamsPluginData.FromString(value.metadata.plugin_data.content)
            found.setdefault(tag, []).append(message)
    return found


def digits_map(n: int = 45, width: int = 7) -> FeatureMap:
    test = images("digits", "test")
    features = np.random.default_rng(0).normal(size=(n, width)).astype(np.float32) * 1e3
    names = [f"class {c}" for c in test.class_names]
    return FeatureMap(features[:, :2], test.labels[:n], names, test.image[:n], features)


def test_hparams_are_the_settings_and_a_finished_run_is_a_success(tmp_path):
    computes = {"width": 16, "net": {"class": "MLP", "widths": [8, 9]}, "lr": 0.01, "norm": True}
    run = Run(workdir=str(tmp_path))
    defaults = {"width": 8, "blur": 0.5}
    train(made_with(tiny(num_steps=2), computes, defaults=defaults), run)
    found = hparams(tmp_path / "tensorboard")
    assert sorted(found) == ["_hparams_/session_end_info", "_hparams_/session_start_info"]
    values = {
        name: getattr(value, value.WhichOneof("kind"))
        for name, value in found["_hparams_/session_start_info"][
            0
        ].session_start_info.hparams.items()
    }
    assert values == {
        "width": 16.0,
        "blur": 0.5,
        "net.class": "MLP",
        "net.widths": "[8, 9]",
        "lr": 0.01,
        "norm": True,
        "run.seed": 0.0,
        "run.seeds": 1.0,
    }
    assert found["_hparams_/session_end_info"][0].session_end_info.status == 1  # STATUS_SUCCESS


def test_a_run_that_is_stopped_is_no_success(tmp_path):
    with pytest.raises(InputError, match="became nan"):
        train(tiny(num_steps=9, nan_at=3), Run(workdir=str(tmp_path)))
    assert list(hparams(tmp_path / "tensorboard")) == ["_hparams_/session_start_info"]


def test_a_number_that_is_not_finite_is_written_without_a_warning(tmp_path, caplog):
    Board(tmp_path, 0).scalars(1, {"loss": float("nan"), "norm": [1.0, 3.0]})
    found = {tag: value.simple_value for _, tag, value in summaries(tmp_path)}
    assert np.isnan(found["loss"]) and found["norm"] == 2 and not caplog.records


def test_projector_has_features_classes_and_thumbnails_of_the_same_examples(tmp_path):
    found = digits_map()
    board = Board(tmp_path, 0)
    board.features("features/map", digits_map(n=3))  # Replaced.
    board.features("features/map", found)
    board.features("other/map", FeatureMap(found.points, found.labels, found.class_names))
    board.close()
    config = (tmp_path / "projector_config.pbtxt").read_text()
    paths = dict(re.findall(r'(\w+_path): "(.*?)"', config))
    assert config.count("embeddings {") == 1 and 'tensor_name: "features_map"' in config
    np.testing.assert_allclose(
        np.loadtxt(tmp_path / paths["tensor_path"], delimiter="\t"), found.features, rtol=1e-3
    )
    labels = (tmp_path / paths["metadata_path"]).read_text().splitlines()
    assert labels == [found.class_names[c] for c in found.labels]
    side = int(re.search(r"single_image_dim: (\d+) single_image_dim: \1 ", config)[1])
    sheet = np.asarray(Image.open(tmp_path / paths["image_path"]))
    columns = sheet.shape[1] // side
    assert sheet.shape == (columns * side, columns * side, 3)
    for i in (0, 1, columns, 44):  # TensorBoard counts along the rows.
        row, column = divmod(i, columns)
        cell = sheet[row * side : (row + 1) * side, column * side : (column + 1) * side, 0]
        small = cell.reshape(8, side // 8, 8, side // 8)
        np.testing.assert_array_equal(small[:, 0, :, 0], found.images[i, ..., 0])


def test_wide_features_are_fewer_examples(tmp_path, monkeypatch):
    monkeypatch.setattr("ssljax.tensorboard.MOST_FEATURES", 100)
    board = Board(tmp_path, 0)
    board.features("map", digits_map(n=45, width=9))
    folder = tmp_path / "projector" / "map"
    assert np.loadtxt(folder / "tensors.tsv", delimiter="\t").shape == (11, 9)
    assert len((folder / "metadata.tsv").read_text().splitlines()) == 11
    assert Image.open(folder / "sprite.png").size == (4 * figures.CELL, 4 * figures.CELL)


def test_pictures_texts_and_feature_maps_reach_tensorboard_and_wandb(tmp_path, monkeypatch):
    logged = []
    fake = SimpleNamespace(
        Image=lambda pixels: ("image", pixels.tolist()),
        Html=lambda text, inject: ("html", text, inject),
        init=lambda **_: SimpleNamespace(
            log=lambda values, step: logged.append((step, values)),
            summary={},
            finish=lambda: logged.append("finished"),
        ),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train(made_with(tiny(num_steps=1), {"lr": 0.1}), Run(workdir=str(tmp_path)))
    log = logs.Log(tmp_path, 10, 1, "project")
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    log.picture(5, "samples/grid", pixels)
    log.text(5, "text/sample", "a <b> & c")
    log.feature_map(5, "features/map", digits_map())
    log.close()
    shown = [(step, tag) for step, tag, _ in summaries(tmp_path / "tensorboard") if step == 5]
    assert [tag for _, tag in shown] == ["samples/grid", "text/sample/text_summary", "features/map"]
    assert (tmp_path / "tensorboard" / "projector_config.pbtxt").exists()
    assert logged[0] == (5, {"samples/grid": ("image", pixels.tolist())})
    assert logged[1] == (5, {"text/sample": ("html", "<pre>a &lt;b&gt; &amp; c</pre>", False)})
    assert logged[2][0] == 5 and list(logged[2][1]) == ["features/map"]
    assert logged[3:] == ["finished"]
