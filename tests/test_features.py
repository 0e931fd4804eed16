"""Features of files: those of the run's evaluators, streamed, written whole."""

import csv
from dataclasses import replace
import shutil

import jax
import numpy as np
from PIL import Image
import pyarrow.parquet as pq
import pytest

from experiments.audio_dae import audio_dae
from experiments.bert import bert
from experiments.finetune import finetune
from experiments.finetune_text import finetune_text
from experiments.gpt import gpt
from experiments.rotation import rotation
from experiments.simclr import simclr
from experiments.simcse import simcse
from experiments.t5 import t5
from experiments.text_to_text import text_to_text
from experiments.vae import vae
from experiments.wav2vec2 import wav2vec2
from ssljax import Experiment, features, load, Loaded, Run, train
from ssljax.data import Images, images, PlainImages, sources
from ssljax.data.audio import Recordings, recordings
from ssljax.data.documents import documents, labelled_documents
from ssljax.data.folders import find_files, IMAGES
from ssljax.data.token_rows import labelled_rows
from ssljax.data.tokenizers import load_tokenizer
from ssljax.errors import InputError
from ssljax.evals import features as of_sets
from ssljax.export import export
from ssljax.features import main, write_features
from ssljax.models.coder import Dense
from ssljax.models.convnet import ConvNet
from ssljax.models.transformer import Transformer
from ssljax.pretrained import _encoding, encoder_of
from tests.saved_runs import save_run
from tests.tiny import tiny


def written(file) -> tuple[list[str], np.ndarray]:
    """Names and features in a file that was written."""
    if file.suffix == ".npz":
        found = np.load(file)
        return found["file"].tolist(), found["features"]
    if file.suffix == ".parquet":
        table = pq.read_table(file)
        return table["file"].to_pylist(), np.array(table["features"].to_pylist(), np.float32)
    names, *rows = csv.reader(file.read_text().splitlines())
    assert names[:2] == ["file", "0"]
    return [row[0] for row in rows], np.array([row[1:] for row in rows], np.float32)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 60 photographs of several shapes, and an untrained run on them."""
    root = tmp_path_factory.mktemp("photos")
    every = images("photos", "train").image
    for i, x in enumerate(every[::6][:60]):
        (root / f"part-{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(x[: 32 - i % 13, : 19 + i % 13]).save(
            root / f"part-{i % 2}" / f"{i:02}.png"
        )
    (root / "notes.txt").write_text("no image")
    folder = tmp_path_factory.mktemp("run") / "run"
    data = Images(str(root), image_size=16)
    save_run(rotation, folder, data=data, encoder=ConvNet((4, 6)), batch_size=8, epochs=1)
    return root, load(folder)


@pytest.mark.parametrize("make", [rotation, simclr], ids=lambda make: make.__name__)
def test_features_of_photographs_are_those_of_the_evaluators(make, photos, tmp_path, capsys):
    """Of the middle of images where a method has random crops, else of the largest square."""
    root, run = photos
    data = Images(str(root), image_size=16)
    if make is simclr:
        save_run(simclr, tmp_path / "run", data=data, encoder=ConvNet((4, 6)), batch_size=8)
        run = load(tmp_path / "run")
    sets, expected = data.read(whole=make is simclr), {}
    for split, source in (("train", sets.bank), ("test", sets.queries)):
        z = of_sets.features(run.experiment.encode, run.train_state, source)
        expected |= dict(zip(find_files(root, IMAGES).names[split], z))
    capsys.readouterr()
    for suffix in ("parquet", "npz", "csv"):
        file = tmp_path / "out" / f"z.{suffix}"
        assert write_features(run, root, file, batch_size=7) == 60
        names, z = written(file)
        assert names == sorted(expected) and z.shape == (60, 6)
        np.testing.assert_allclose(z, [expected[name] for name in names], rtol=1e-5, atol=1e-6)
    assert np.std(z, axis=0).max() > 0
    assert "60 images; 1 other files" in capsys.readouterr().out
    assert {f.name for f in file.parent.iterdir()} == {"z.parquet", "z.npz", "z.csv"}


SMALL = {"encoder": ConvNet((4, 6)), "batch_size": 8}


def centred(data: Images = Images()) -> Experiment:
    """An experiment whose features depend on the mean of its training images."""
    mean = data.read().train.read(np.arange(9))["image"].mean()
    exp = rotation(data, encoder=ConvNet((4, 6)), batch_size=8)
    return replace(exp, encode=lambda state, x: exp.encode(state, x) - mean)


@pytest.mark.parametrize("limit", [2**31, 0])
def test_features_without_the_data_of_the_run(photos, tmp_path, monkeypatch, capsys, limit):
    monkeypatch.setattr(sources, "RESIDENT_BYTES", limit)  # Resident and streamed.
    root = shutil.copytree(photos[0], tmp_path / "set")
    data, x = Images(str(root), image_size=16), images("photos", "test", 16).image[:5]
    for make, arguments in ((rotation, SMALL), (centred, {})):
        save_run(make, tmp_path / make.__name__, data=data, **arguments)
    runs = lambda: (load(tmp_path / make.__name__, make=make) for make in (rotation, centred))
    z = [run.encode(x) for run in runs()]
    root.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    whole, of_content = runs()
    np.testing.assert_array_equal(whole.encode(x), z[0])
    assert f"Note: {root} isn't here" in capsys.readouterr().out
    assert write_features(whole, tmp_path / "elsewhere", tmp_path / "z.npz") == 60
    with pytest.raises(InputError, match="no folder or .* Its features depend on the content of"):
        of_content.encode(x)
    with pytest.raises(InputError, match="can't be made again: There is no folder or"):
        whole.experiment  # noqa: B018  # What would be evaluated on that data.


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (bert, {"vocabulary": 300}),
        (gpt, {"tokens": "bpe", "vocabulary": 300}),
        (t5, {"vocabulary": 300}),
    ],
)
def test_features_without_the_text_of_the_run(make, settings, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(documents("python", "train").text)[:30_000])
    net = Transformer(1, 2, 8)
    save_run(make, tmp_path / "run", data=str(text), net=net, length=16, batch_size=8, **settings)
    rows = np.random.default_rng(0).integers(0, 300, (3, 16)).astype(np.int32)
    z = load(tmp_path / "run").encode(rows)
    assert z.shape == (3, 8) and np.abs(z[0] - z[1]).max() > 1e-3
    (tmp_path / "moved").mkdir()
    text.rename(tmp_path / "moved" / "text.txt")
    capsys.readouterr()
    np.testing.assert_array_equal(load(tmp_path / "run").encode(rows), z)
    assert f"Note: {text} isn't here as the run read it; features are" in capsys.readouterr().out
    assert write_features(load(tmp_path / "run"), tmp_path / "moved", tmp_path / "z.npz") == 1
    export(tmp_path / "run", "safetensors", tmp_path / "weights")
    (tmp_path / "run" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="can't be made again: There is no file or folder"):
        load(tmp_path / "run").encode(rows)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("make", [simcse, finetune_text, text_to_text])
def test_features_without_the_labelled_texts_of_the_run(make, labels, tmp_path, capsys):
    """Nor without the run that it started from, whose net and tokens it has itself."""
    if not labels and make is not text_to_text:
        return
    docs = labelled_documents("python", "train")
    texts = tmp_path / "texts"
    for i, text in enumerate(docs.text[:24]):
        (folder := texts / f"class {i % 3}").mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.txt").write_text(text[:400])
    if not labels:
        texts = tmp_path / "pairs.tsv"
        texts.write_text("".join(f"{i} and {i}\t{2 * i}\n" for i in range(40)))
    net, start = Transformer(1, 2, 8), t5 if make is text_to_text else bert
    small = {"net": net, "length": 16, "vocabulary": 600, "batch_size": 8}
    save_run(start, tmp_path / "start", data="python", **small)
    runs = {"whole": {}, "tuned": {"pretrained": str(tmp_path / "start")}}
    rows = np.random.default_rng(0).integers(0, 500, (3, 16)).astype(np.int32)
    z = {}
    for name, more in runs.items():
        save_run(make, tmp_path / name, data=str(texts), **(small | more))
        z[name] = load(tmp_path / name).encode(rows)
    (tmp_path / "start").rename(tmp_path / "elsewhere")  # The data is still here.
    np.testing.assert_array_equal(load(tmp_path / "tuned").encode(rows), z["tuned"])
    assert f"Note: {tmp_path / 'start'} isn't here" in capsys.readouterr().out
    texts.rename(tmp_path / "moved")
    for name in runs:
        np.testing.assert_array_equal(load(tmp_path / name).encode(rows), z[name])
        both = [str(tmp_path / "start"), str(texts)]
        gone = f"{texts} isn't" if name == "whole" else f"{', '.join(sorted(both))} aren't"
        assert f"Note: {gone} here" in capsys.readouterr().out
        with pytest.raises(InputError, match="made again: There is no|is no file of pairs"):
            load(tmp_path / name).experiment  # noqa: B018


def test_data_that_has_changed_is_replaced_as_data_that_is_missing(photos, tmp_path, capsys):
    """Images, a text and labelled texts under the same name; also a folder named as an own set."""
    root = shutil.copytree(photos[0], tmp_path / "set")
    text, texts = tmp_path / "text.txt", tmp_path / "texts"
    text.write_text("\n".join(documents("python", "train").text)[:30_000])
    for i, one in enumerate(labelled_documents("python", "train").text[:24]):
        (folder := texts / f"class {i % 3}").mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.txt").write_text(one[:400])
    small = {"net": Transformer(1, 2, 8), "length": 16, "vocabulary": 600, "batch_size": 8}
    x = images("photos", "test", 16).image[:5]
    rows = np.random.default_rng(0).integers(0, 500, (3, 16)).astype(np.int32)
    save_run(rotation, tmp_path / "a", data=Images(str(root), image_size=16), **SMALL)
    save_run(gpt, tmp_path / "b", data=str(text), tokens="bpe", **small)
    save_run(simcse, tmp_path / "c", data=str(texts), **small)
    given = {"a": x, "b": rows, "c": rows}
    z = {name: load(tmp_path / name).encode(of) for name, of in given.items()}
    assert "Note" not in capsys.readouterr().out
    next(iter(root.rglob("*.png"))).unlink()
    text.write_text("another text, of other characters and words. " * 500)
    shutil.rmtree(texts / "class 2")
    for name, of in given.items():
        np.testing.assert_array_equal(load(tmp_path / name).encode(of), z[name])
        assert "isn't here as the run read it; features are" in capsys.readouterr().out


def test_a_run_of_a_function_in_no_file_or_of_another_name_is_loaded(tmp_path, monkeypatch, capsys):
    """And no file that trains where it is imported is run over and over."""
    monkeypatch.chdir(tmp_path)
    program = """
from ssljax import InputError, load, Run, train
from ssljax.ranges import checked
from tests.tiny import tiny

@checked
def mine(width: int = 8):
    return tiny(width=width, num_steps=2)
"""
    (tmp_path / "method.py").write_text(program)
    found = {}
    exec(program, found)  # As a notebook's cell does.
    train(found["mine"](4), Run(workdir="cell"))
    monkeypatch.syspath_prepend(str(tmp_path))
    import method  # pyright: ignore[reportMissingImports] - written above

    train(method.mine(4), Run(workdir="file"))
    assert load("file").experiment.origin.computes == {"width": 4}
    with pytest.raises(InputError, match="was made by a function that is in no file: give it"):
        load("cell").experiment  # noqa: B018
    assert load("cell", make=found["mine"]).experiment.origin.computes == {"width": 4}
    (tmp_path / "method.py").write_text(program + '\ntrain(mine(4), Run(workdir="file"))\n')
    with pytest.raises(InputError, match="method.py trains or loads a run where it is imported"):
        load("file").experiment  # noqa: B018
    with pytest.raises(InputError, match="made again|no such argument"):
        load("file", make=lambda height=3: tiny()).experiment  # noqa: B018


def test_features_of_a_tuned_net_without_the_run_that_it_started_from(photos, tmp_path, capsys):
    root = photos[0]
    labelled = PlainImages(f"{root}:classes", image_size=16)
    x = images("photos", "test", 16).image[:5]
    save_run(rotation, tmp_path / "start", data=Images(str(root), image_size=16), **SMALL)
    old = str(tmp_path / "start")
    save_run(finetune, tmp_path / "run", data=labelled, pretrained=old, batch_size=8)
    z = load(tmp_path / "run").encode(x)
    (tmp_path / "start").rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(load(tmp_path / "run").encode(x), z)
    assert f"Note: {tmp_path / 'start'} isn't here" in capsys.readouterr().out
    assert write_features(load(tmp_path / "run"), root, tmp_path / "z.npz") == 60
    with pytest.raises(InputError, match="elsewhere|does not exist"):
        load(tmp_path / "run").experiment  # noqa: B018


def test_features_without_the_sound_of_the_run(tmp_path, capsys):
    import soundfile

    rng = np.random.default_rng(0)
    sound = tmp_path / "sound"
    sound.mkdir()
    for i in range(6):
        soundfile.write(sound / f"{i}.wav", 0.3 * rng.normal(size=512), 8000)
    data = Recordings(str(sound), wave=256)
    net = Transformer(1, 1, 16, positions="convolutional", norm="layer", reach=4)
    for make, nets in ((wav2vec2, {"context": net}), (audio_dae, {})):
        save_run(make, tmp_path / make.__name__, data=data, batch_size=2, epochs=1, **nets)
    waves = rng.integers(-9999, 9999, (2, 256)).astype(np.int16)
    z = load(tmp_path / "wav2vec2").encode(waves)
    sound.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    np.testing.assert_array_equal(load(tmp_path / "wav2vec2").encode(waves), z)
    assert f"Note: {sound} isn't here" in capsys.readouterr().out
    assert write_features(load(tmp_path / "wav2vec2"), tmp_path / "elsewhere", tmp_path / "z.csv")
    with pytest.raises(InputError, match="features depend on the content of the data"):
        load(tmp_path / "audio_dae").encode(waves)  # On the mean of its spectrograms.


def test_a_net_that_is_tuned_needs_no_data_of_its_run(photos, tmp_path, capsys):
    """Neither of a run that keeps no encoder, nor of its export."""
    root = shutil.copytree(photos[0], tmp_path / "set")
    data, x = Images(str(root), image_size=16), images("photos", "test", 16).image[:5]
    save_run(vae, tmp_path / "run", data=data, coder=Dense((4,)), batch_size=8)
    export(tmp_path / "run", "safetensors", tmp_path / "out")
    z = load(tmp_path / "run").encode(x)
    root.rename(tmp_path / "elsewhere")
    _encoding.cache_clear()  # As in another process.
    for source in ("run", "out"):
        capsys.readouterr()
        old = encoder_of(tmp_path / source)
        y = old.net.apply({"params": old.params}, x / np.float32(255))
        np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-5)
    assert "isn't here" not in capsys.readouterr().out  # The same experiment is made once.


def test_no_more_than_two_batches_are_read_before_the_first_is_written(photos, tmp_path):
    root, run = photos
    seen, read = [], []
    decoder = features.decoder
    writer = features._npz

    def counted(*args, **kwargs):
        decode = decoder(*args, **kwargs)

        class Decode(type(decode)):
            def __call__(self, file, name=""):
                read.append(file)
                return super().__call__(file, name)

        return Decode(**vars(decode))

    class Seen:
        def __init__(self, path):
            self.inner = writer(path)

        def __enter__(self):
            write = self.inner.__enter__()
            return lambda *args: (seen.append(len(read)), write(*args))

        def __exit__(self, *error):
            return self.inner.__exit__(*error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "decoder", counted)
        patch.setattr(features, "_npz", Seen)
        write_features(run, root, tmp_path / "z.npz", batch_size=4)
    assert len(seen) == 15 and all(n <= 4 * (i + 2) for i, n in enumerate(seen)), seen


def test_files_that_cannot_be_read_stop_it_or_are_left_out(photos, tmp_path, capsys):
    root, run = photos
    copy = tmp_path / "photos"
    copy.mkdir()
    good = sorted(root.rglob("*.png"))[:6]
    for i, file in enumerate(good):
        (copy / f"{i}.png").write_bytes(file.read_bytes())
    for i in (2, 5):
        (copy / f"{i}.png").write_bytes(good[i].read_bytes()[:90])
    old = tmp_path / "z.csv"
    old.write_text("older\n")
    with pytest.raises(InputError, match=r"2.png can't be read as an image .*--skip-bad"):
        write_features(run, copy, old, batch_size=2)
    assert old.read_text() == "older\n"
    assert {f.name for f in tmp_path.iterdir()} == {"photos", "z.csv"}
    assert write_features(run, copy, old, batch_size=2, skip_bad=True) == 4
    names, z = written(old)
    assert names == ["0.png", "1.png", "3.png", "4.png"]
    write_features(run, root, tmp_path / "all.csv")
    by_name = dict(zip(*written(tmp_path / "all.csv")))
    expected = [by_name[str(good[int(n[0])].relative_to(root))] for n in names]
    np.testing.assert_allclose(z, expected, rtol=1e-5, atol=1e-6)
    assert "Left out 2 of 6 files so far" in capsys.readouterr().out


def test_features_of_a_recording_are_the_mean_of_its_windows(tmp_path):
    import soundfile

    rng = np.random.default_rng(0)
    (tmp_path / "sound").mkdir()
    for i, n in enumerate((1000, 300, 512, 2000)):
        wave = np.clip(0.3 * rng.normal(size=n).cumsum() / 9, -1, 1)
        soundfile.write(tmp_path / "sound" / f"{i}.wav", wave, 8000)
    data = Recordings(str(tmp_path / "sound"), wave=256)
    save_run(audio_dae, tmp_path / "run", data=data, batch_size=2, epochs=1)
    run = load(tmp_path / "run")
    write_features(run, tmp_path / "sound", tmp_path / "z.npz", batch_size=3)
    names, z = written(tmp_path / "z.npz")
    assert names == [f"{i}.wav" for i in range(4)]
    splits = find_files(tmp_path / "sound", features.RECORDINGS).names
    for split in ("train", "test"):
        every = recordings(str(tmp_path / "sound"), split, 256).arrays()["image"]
        sizes = {"0.wav": 4, "1.wav": 1, "2.wav": 2, "3.wav": 8}
        for name in splits[split]:
            mine, every = every[: sizes[name]], every[sizes[name] :]
            expected = np.mean([run.encode(x[None])[0] for x in mine], axis=0)
            np.testing.assert_allclose(z[names.index(name)], expected, rtol=1e-4, atol=1e-6)
        assert not len(every)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (simcse, {"vocabulary": 400}),
        (bert, {"vocabulary": 400}),
        (gpt, {"tokens": "characters"}),
        (t5, {"vocabulary": 300}),
    ],
)
def test_features_of_texts_are_of_their_first_tokens(make, settings, tmp_path):
    net = Transformer(1, 2, 8)
    save_run(make, tmp_path / "run", net=net, length=16, batch_size=8, **settings)
    run, docs = load(tmp_path / "run"), labelled_documents("python", "test")
    (tmp_path / "texts").mkdir()
    for i in range(5):
        (tmp_path / "texts" / f"{i}.txt").write_text(docs.text[i])
    write_features(run, tmp_path / "texts", tmp_path / "z.parquet", batch_size=2)
    rows = labelled_rows(load_tokenizer(tmp_path / "run"), docs.select(np.arange(5)), 16).image
    names, z = written(tmp_path / "z.parquet")
    assert names == [f"{i}.txt" for i in range(5)]
    np.testing.assert_allclose(z, run.encode(rows), rtol=1e-5, atol=1e-6)
    (tmp_path / "texts" / "3.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="3.txt"):
        write_features(run, tmp_path / "texts", tmp_path / "z.npz", batch_size=2)
    assert write_features(run, tmp_path / "texts", tmp_path / "z.npz", skip_bad=True) == 4


def test_what_cannot_be_done_is_one_sentence(photos, tmp_path, capsys):
    root, run = photos
    (tmp_path / "empty").mkdir()
    for folder, out, says in (
        (root, tmp_path / "z.txt", "must be the name of a .parquet, .npz or .csv"),
        (tmp_path / "empty", tmp_path / "z.npz", "holds no images, which the run was trained on"),
        (tmp_path / "none", tmp_path / "z.npz", "There is no folder"),
    ):
        with pytest.raises(InputError, match=says):
            write_features(run, folder, out)
    bad = jax.tree.map(np.copy, run.state["params"])
    bad["encoder"]["norm2"]["bias"][:] = np.inf
    broken = Loaded(run.workdir, run.state | {"params": bad})
    with pytest.raises(InputError, match=r"features of part-0/00.png are not finite"):
        write_features(broken, root, tmp_path / "z.npz")
    assert not (tmp_path / "z.npz").exists()
    rectangular = np.zeros((60, 8, 4, 1), np.uint8)
    np.savez(tmp_path / "x.npz", train_images=rectangular, test_images=rectangular)
    data = Images(str(tmp_path / "x.npz"))
    save_run(vae, tmp_path / "flat", data=data, coder=Dense((4,)), batch_size=8)
    with pytest.raises(InputError, match="images are 8x4 with 1 channels, and image files are"):
        write_features(load(tmp_path / "flat"), root, tmp_path / "z.npz")
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "no-run"), str(root), "-o", str(tmp_path / "z.npz")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
