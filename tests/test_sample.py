"""Samples of finished runs: of every file that draws some, by label, and with other settings."""

from dataclasses import replace
import inspect
import json
import pathlib

import jax
import numpy as np
from PIL import Image
import pytest

import ssljax
from ssljax import Experiment, Run, train
from ssljax.data import PlainImages
from ssljax.errors import InputError
from ssljax.loaded import batch_of
from ssljax.models.unet import TimeUNet
from ssljax.sample import main, write_samples
from tests.small import make, SMALL, small

FILES = sorted(pathlib.Path("experiments").glob("*.py"))
DRAWS = [file for file in FILES if "sample=" in file.read_text()]
NET = TimeUNet(widths=(8,), heads=2)
UNBOUNDED = ("ddpm", "flow")


def noise(path, seed=0):
    """A set of the form of digits."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (1797, 8, 8, 1), np.uint8)
    np.savez(path, image=images, label=np.arange(1797) % 10)
    return str(path)


def started(exp: Experiment):
    batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), batch_of(exp))
    return exp.init(jax.random.key(0), batch)


def test_every_file_that_generates_can_be_sampled():
    names = {file.stem for file in DRAWS}
    assert {"ddpm", "flow", "vae", "cvae", "dcgan", "r3gan", "gpt", "lstm", "pacgan"} <= names
    for file in FILES:
        generates = any(
            x in file.read_text() for x in ("generated(", "text_samples(", "samples(dr")
        )
        assert not generates or file in DRAWS or file.stem == "audio_dae", file


@pytest.mark.parametrize("file", DRAWS, ids=lambda file: file.stem)
def test_samples_know_the_form_of_the_data_alone(file, tmp_path):
    function, arguments = small(file, SMALL)
    takes = inspect.signature(function).parameters
    other: dict = {}
    if isinstance(takes["data"].default, PlainImages):
        other = {"data": PlainImages(noise(tmp_path / "noise.npz"))}
    elif "tokens" in takes:
        texts = ["the same letters, " * 50, "retsam hte, le es" * 50]
        for i, text in enumerate(texts):
            (tmp_path / f"{i}.txt").write_text(text)
        arguments |= {"data": str(tmp_path / "0.txt"), "tokens": "characters"}
        other = {"data": str(tmp_path / "1.txt")}
    one = function(**arguments)
    state, given = started(one), {}
    if "prompt" in inspect.signature(one.sample).parameters:
        given = {"prompt": np.array([1, 2, 3], np.int32), "tokens": 5}
    draw = jax.jit(lambda s, k, **more: one.sample(s, k, 4, **given, **more))
    found = np.asarray(draw(state, jax.random.key(1)))
    assert np.isfinite(found).all() and len(found) == 4
    assert not np.array_equal(found, draw(state, jax.random.key(2)))
    if given:
        assert found.shape == (4, 8) and (found[:, :3] == given["prompt"]).all()
    elif file.stem != "pacgan":
        assert found.shape[1:3] == (8, 8)
        assert file.stem in UNBOUNDED or 0 <= found.min() < found.max() <= 1
    two = function(**arguments | other)
    again = jax.jit(lambda s, k: two.sample(s, k, 4, **given))(state, jax.random.key(1))
    np.testing.assert_array_equal(found, again)
    if "label" in inspect.signature(one.sample).parameters:
        three, same, seven = (draw(state, jax.random.key(1), label=y) for y in (3, 3, 7))
        np.testing.assert_array_equal(three, same)
        if file.stem == "cvae":  # In others what depends on the class begins at 0.
            assert not np.array_equal(three, seven)


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    """A run of ddpm on a set of its own, which is gone."""
    from experiments.ddpm import ddpm

    folder = tmp_path_factory.mktemp("guided")
    data = PlainImages(noise(folder / "noise.npz"))
    exp = ddpm(data, unet=NET, sampling_steps=2, batch_size=8, lr=0.05)
    train(of(exp, 3), Run(workdir=str(folder / "run"), log_every=1))
    (folder / "noise.npz").unlink()
    return str(folder / "run")


def of(exp, steps):
    return replace(exp, num_steps=steps, evals={})


def test_pictures_of_a_run(guided, capsys):
    run = ssljax.load(guided)
    found = run.sample(5, batch_size=2)
    assert found.shape == (5, 8, 8, 1) and found.dtype == np.uint8
    line = "noise.npz isn't here as the run read it; features are computed without it."
    assert line in capsys.readouterr().out
    np.testing.assert_array_equal(found[:3], run.sample(3, batch_size=2))
    assert not np.array_equal(found, run.sample(5, 1, batch_size=2))
    seven = run.sample(2, label=7)
    np.testing.assert_array_equal(seven, run.sample(2, label="7"))
    for changes in ({"guidance": 3.0}, {"sampling_steps": 5}, {"eta": 1.0}):
        other = ssljax.load(guided, **changes).sample(2, label=7)
        assert other.shape == seven.shape and not np.array_equal(other, seven)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"label": "cat"}, "There is no class cat, of 10: give a name, such as"),
        ({"label": 10}, "There is no class 10, of 10"),
        ({"label": -1}, "There is no class -1"),
        ({"prompt": "a"}, "continues no text: leave the prompt out"),
        ({"n": 0}, "1 or more, not 0"),
    ],
)
def test_what_a_run_does_not_draw_is_one_sentence(guided, given, words):
    with pytest.raises(InputError, match=words):
        ssljax.load(guided).sample(**{"n": 2, **given})


def test_changes_that_cannot_be_are_one_sentence(guided):
    with pytest.raises(InputError, match="has no argument guidanc: did you mean guidance"):
        ssljax.load(guided, guidanc=1.0).sample(1)
    with pytest.raises(InputError, match="have another params/.*, and without unet"):
        ssljax.load(guided, unet=TimeUNet(widths=(16,), heads=2)).sample(1)
    with pytest.raises(InputError, match="--guidance must be"):
        ssljax.load(guided, guidance=-1.0).sample(1)


def test_files_of_samples(guided, tmp_path, capsys):
    flags = [guided, "--n", "5", "--batch-size", "5", "--seed", "3"]
    main([*flags, "-o", str(tmp_path / "new" / "folder")])
    folder = tmp_path / "new" / "folder"
    assert sorted(f.name for f in folder.iterdir()) == [f"{i:05}.png" for i in range(5)]
    pictures = np.stack([np.asarray(Image.open(f)) for f in sorted(folder.iterdir())])
    main([*flags, "-o", str(tmp_path / "a.npz")])
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(file["samples"][..., 0], pictures)
    main([*flags, "-o", str(tmp_path / "a.png"), "--guidance", "2", "--label", "3"])
    assert Image.open(tmp_path / "a.png").mode == "RGB"
    assert "a.png: 5 samples" in capsys.readouterr().out
    for more, words in (
        (["-o", str(folder)], "is no empty folder: give a new one"),
        (["-o", "a.gif"], "Give -o with a folder, a .png, .npz, .txt or .jsonl, not a.gif"),
        ([], "Give -o with a folder, a .png or an .npz"),
        (["-o", str(tmp_path / "b"), "--guidence", "2"], "did you mean --guidance"),
        (["-o", str(tmp_path / "b"), "--run.seed", "2"], "leave flags of --run out"),
    ):
        with pytest.raises(SystemExit):
            main([*flags, *more])
        assert words in capsys.readouterr().err
    with pytest.raises(InputError, match="a folder or .png for pictures, not a.txt"):
        write_samples(pictures[..., None], tmp_path / "a.txt")
    assert not (tmp_path / "b").exists()


def test_texts_of_a_run(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("the same letters, " * 100)
    exp = make(
        pathlib.Path("experiments/gpt.py"), 2, data=str(tmp_path / "a.txt"), tokens="characters"
    )
    train(exp, Run(workdir=str(tmp_path / "run"), log_every=1))
    found = ssljax.load(tmp_path / "run").sample(2, prompt="the sa", tokens=40)
    assert len(found) == 2 and all(x.startswith("the sa") for x in found)
    assert [len(x.replace("[UNK]", "?")) for x in found] == [46, 46]
    long = "the same letters, " * 20  # More than the window.
    assert ssljax.load(tmp_path / "run").sample(1, prompt=long, tokens=5)[0].startswith(long)
    with pytest.raises(InputError, match="Give a prompt, the text that samples continue"):
        ssljax.load(tmp_path / "run").sample(1)
    flags = [str(tmp_path / "run"), "--n", "2", "--prompt", "the ", "--tokens", "9"]
    capsys.readouterr()
    main([*flags, "--temperature", "0"])
    one, two = capsys.readouterr().out.split("― 2 of 2 ―\n")
    assert two.strip() in one.splitlines()[1]  # The most likely text is one.
    main([*flags, "-o", str(tmp_path / "a.jsonl")])
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [len(json.loads(x)["text"].replace("[UNK]", "?")) for x in lines] == [13, 13]
    with pytest.raises(InputError, match="Give -o with .txt or .jsonl for texts"):
        write_samples(found, tmp_path / "a.png")


def test_a_run_of_an_encoder_draws_none(tmp_path):
    exp = make(pathlib.Path("experiments/simclr.py"), 1)
    train(of(exp, 1), Run(workdir=str(tmp_path / "run")))
    with pytest.raises(InputError, match="draws no samples"):
        ssljax.load(tmp_path / "run").sample(1)
