"""Records of runs: what a run resumes with, damaged files, locks, and fingerprints of data."""

from dataclasses import make_dataclass, replace
import inspect
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
from PIL import Image
import pytest

from experiments.gpt import gpt
import ssljax
from ssljax import cli, Experiment, fingerprint, InputError, load, record, Run, train
from ssljax.data import feed, Images, images
from ssljax.data.audio import recordings
from ssljax.data.documents import documents, labelled_documents
from ssljax.data.sources import Arrays, OnDisk
from ssljax.data.text_pairs import text_pairs
from ssljax.lock import lock
from ssljax.models.transformer import Transformer
from ssljax.ranges import checked, Count
from tests.conftest import ROOT
from tests.tiny import made_with, tiny

pytestmark = pytest.mark.usefixtures("one_device")


def of_images(data: str = "digits", epochs: int = 1, width: int = 8, judge: str = "") -> tiny:
    """The tiny experiment on 64 features of any images."""
    train_set = images(data, "train")
    images(judge or data, "test")
    pixels = train_set.image.reshape(len(train_set), -1)[:, :64]
    rows = Arrays(pixels.reshape(-1, 8, 8, 1), train_set.labels, train_set.class_names)
    exp = tiny(width=width)
    return replace(exp, data=feed(rows, 8), num_steps=epochs * (len(rows) // 8), evals={})


def run_main(capsys, make, *flags: str) -> tuple[int, str, str]:
    """Exit status, output and errors of a command."""
    try:
        cli.main(make, flags)
        status = 0
    except SystemExit as e:
        status = e.code
    said = capsys.readouterr()
    return status, said.out, said.err


def write_pictures(folder: pathlib.Path, classes: int = 2, each: int = 20) -> None:
    rng = np.random.default_rng(0)
    for c in range(classes):
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{c}" / f"{i:03}.bmp")


# What a run resumes with.


def test_arguments_that_differ_are_listed(tmp_path):
    run = Run(workdir=str(tmp_path))
    exp, computes = tiny(num_steps=2), {"lr": 0.01, "encoder": {"class": "MLP", "width": 16}}
    train(made_with(exp, computes), run)
    with pytest.raises(
        InputError, match=r"(?s)--encoder\.width: 16 in the folder, 32 now.*--lr: 0.01 .*, 0.1 now"
    ):
        train(made_with(exp, {"lr": 0.1, "encoder": {"class": "MLP", "width": 32}}), run)
    with pytest.raises(InputError, match="--run.seed: 0 in the folder, 1 now"):
        train(made_with(exp, computes), replace(run, seed=1))


def test_record_is_enough_to_repeat(tmp_path):
    source = ROOT / "tests" / "tiny.py"
    exp = made_with(tiny(num_steps=2), {"num_steps": 2}, source=str(source))
    train(exp, Run(workdir=str(tmp_path)))
    found = json.loads((tmp_path / "record.json").read_text())
    assert found["computes"] == {"num_steps": 2, "run": {"seed": 0, "seeds": 1}}
    launch = found["launches"][0]
    assert {"jax", "flax", "optax", "numpy"} <= launch["versions"].keys()
    assert launch["hardware"] and launch["python"]
    assert (tmp_path / "source" / "tiny.py").read_text() == source.read_text()


def test_files_and_texts_of_an_experiment_are_kept(tmp_path, capsys):
    exp = replace(
        tiny(num_steps=4),
        files={"vocabulary.txt": "é\nb\r\n"},
        evals={"said": lambda state: {"words": "öne two"}},
    )
    run = Run(workdir=str(tmp_path))
    train(exp, run)
    assert (tmp_path / "vocabulary.txt").read_bytes() == "é\nb\r\n".encode()
    assert (tmp_path / "figures" / "said_words.txt").read_text(encoding="utf-8") == "öne two\n"
    assert capsys.readouterr().out.count("öne two") == 1
    train(exp, run)
    for damage in (b"\xff\xfe", b"", "é".encode()):
        (tmp_path / "vocabulary.txt").write_bytes(damage)
        with pytest.raises(InputError, match="vocabulary.txt is not what this run's data gives"):
            train(exp, run)


def test_arguments_that_an_older_record_lacks_have_their_defaults(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ("--num-steps", "4", "--run.workdir", "here")
    assert run_main(capsys, tiny, *flags)[0] == 0
    file = tmp_path / "here" / "record.json"
    old = json.loads(file.read_text())
    del old["computes"]["noise"], old["read"]
    file.write_text(json.dumps(old))
    assert run_main(capsys, tiny, *flags)[0] == 0
    status, _, err = run_main(capsys, tiny, *flags, "--noise", "0.2")
    assert status == 2 and "--noise: 0.1 in the folder, 0.2 now" in err
    # This function notes no arguments.
    with pytest.raises(InputError, match="here holds a run with arguments in its record, and this"):
        train(tiny(num_steps=4), Run(workdir="here"))


def test_python_and_a_command_resume_and_load_each_others_runs(tmp_path, capsys):
    from experiments.rotation import rotation
    from ssljax.models.convnet import ConvNet

    make = lambda widths=(4, 5): replace(
        rotation(Images("digits"), encoder=ConvNet(widths), batch_size=500, epochs=1), evals={}
    )
    flags = ["--data", "digits", "--batch-size", "500", "--epochs", "1", "encoder:conv-net"]
    flags += ["--encoder.widths", "4", "5"]
    run = lambda name: Run(workdir=str(tmp_path / name))
    state = train(make(), run("python"))
    assert run_main(capsys, rotation, *flags, "--run.workdir", run("command").workdir)[0] == 0
    x = images("digits", "test").image[:9]
    want = jax.jit(make().encode)(state, x)
    for name in ("python", "command"):
        loaded = load(tmp_path / name)
        assert loaded.record["experiment"] == "rotation.py"
        assert loaded.record["computes"]["encoder"]["widths"] == [4, 5]
        assert loaded.record["read"].keys() == {"digits"} and loaded.record["said"]
        np.testing.assert_array_equal(loaded.encode(x), want)
        status, out, _ = run_main(capsys, rotation, *flags, "--run.workdir", run(name).workdir)
        assert status == 0 and "Finished at step 2" in out
        train(make(), run(name))
        assert "Finished at step 2" in capsys.readouterr().out
        other = [*flags[:-1], "6", "--run.workdir", run(name).workdir]
        assert "--encoder.widths: [4, 5] in the folder, [4, 6] now" in run_main(
            capsys, rotation, *other
        )[2].replace("\n", " ")
        with pytest.raises(InputError, match="--encoder.widths"):
            train(make((4, 6)), run(name))


def test_a_refusal_names_flags_as_they_are_given(tmp_path, capsys):
    """Of a net whose flags have no prefix, without one."""
    net = lambda width: Transformer(1, 2, width)
    small = dict(vocabulary=300, tokens="bpe", length=8, batch_size=8)
    run = Run(workdir=str(tmp_path))
    exp = replace(gpt(net=net(8), **small), num_steps=1, evals={})
    train(exp, run)
    with pytest.raises(InputError, match="(?m)^  --width: 8 in the folder, 16 now$"):
        train(replace(gpt(net=net(16), **small), num_steps=1, evals={}), run)
    assert "(" not in capsys.readouterr().out.partition("training")[2].partition("\n")[0]


def test_that_arguments_are_not_known_is_said_where_a_run_goes_on(tmp_path, capsys):
    run = Run(workdir=str(tmp_path))
    train(tiny(num_steps=2), run)
    assert "Note" not in capsys.readouterr().out
    train(tiny(num_steps=2, lr=0.1), run)
    assert "Note: the arguments of this experiment aren't known" in capsys.readouterr().out


def test_an_experiment_within_another_is_of_the_outer_call():
    """With all that the inner one read and said."""

    @checked
    def outer(width: Count = 8) -> Experiment:
        images("digits", "train")
        return inner(2 * width)

    @checked
    def inner(width: Count = 8) -> Experiment:
        documents("python", "train")
        return tiny(width=width)

    origin = outer(3).origin
    assert origin.computes == {"width": 3} and origin.read.keys() == {"digits", "python"}
    assert inner(6).origin.read.keys() == {"digits", "python"}  # tiny reads digits, too.
    assert origin.source == __file__ and any("digits" in line for line in origin.said)


def test_defaults_of_fields_are_those_of_the_class_given():
    from experiments.mae import mae
    from experiments.simclr import simclr
    from ssljax.models.vit import ViT

    net = ViT(depth=3)
    found = record.defaults_of(simclr, {"encoder": net})
    fields = record.flat(record.plain(ViT()))
    # Nothing else, such as the `parent` of each module, whose default is another in each process.
    expected = {f"encoder.{k}": v for k, v in (fields | {"class": "ConvNet"}).items()}
    assert {k: v for k, v in found.items() if k.startswith("encoder.")} == expected
    # An experiment's own default of the class is the default of its fields.
    found = record.defaults_of(mae, {"vit": ViT(depth=3)})
    own = inspect.signature(mae).parameters["vit"].default
    assert own.depth != ViT().depth and found["vit.depth"] == own.depth
    assert found["vit.patch"] == own.patch and found["vit.class"] == "ViT"


def test_a_field_name_of_an_own_option_is_an_argument():
    option = make_dataclass("Option", [("name", str, "adam"), ("parent", str, "none")])
    form = {"class": "Option", "name": "adam", "parent": "none"}
    assert record.computes_of({"option": option()}) == {"option": form}
    found = record.defaults_of(tiny, {"option": option()})
    assert found["option.name"] == "adam" and found["option.parent"] == "none"


def test_longer_training_is_another_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_main(capsys, of_images, "--run.workdir", "here")[0] == 0
    status, _, err = run_main(capsys, of_images, "--epochs", "2", "--run.workdir", "here")
    assert status == 2 and len(err.strip().splitlines()) == 1
    assert "holds a run of 179 steps, and this command has 358 (--epochs): the schedule" in err
    assert "another --run.workdir" in err and "--pretrained" not in err
    status, _, err = run_main(
        capsys, of_images, "--epochs", "2", "--width", "16", "--run.workdir", "here"
    )
    assert status == 2 and "--epochs: 1 in the folder, 2 now" in err and "--width: 8" in err


# Fingerprints.


def test_moved_data_resumes_and_changed_data_does_not(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "a")
    assert run_main(capsys, of_images, "--data", "a", "--run.workdir", "run")[0] == 0
    shutil.move("a", "b")
    status, out, err = run_main(capsys, of_images, "--data", "b", "--run.workdir", "run")
    assert status == 0 and "at step 4" in out, err
    shutil.move("b", "a")
    shutil.copytree("a", "saved")
    status = run_main(capsys, of_images, "--data", "a", "--run.workdir", "run")[0]
    assert status == 0  # The record still has what the first launch read.

    pixels = np.full((8, 8), 7, np.uint8)
    for i in range(6):  # The folder grows: other splits, and other numbers of steps.
        Image.fromarray(pixels).save(f"a/class0/new{i}.bmp")
    status, _, err = run_main(capsys, of_images, "--data", "a", "--run.workdir", "run")
    assert status == 2 and "a has 43 training images now, 37 when the run began" in err, err
    assert len(err.strip().splitlines()) == 1

    shutil.rmtree("a")
    shutil.copytree("saved", "a")
    Image.fromarray(pixels).save("a/class0/001.bmp")  # The same name and size.
    status, _, err = run_main(capsys, of_images, "--data", "a", "--run.workdir", "run")
    assert status == 2 and "a has other training images than when the run began" in err, err

    shutil.rmtree("a")
    shutil.copytree("saved", "a")
    shutil.move("a/class0/000.bmp", "a/class1/900.bmp")  # One with another label.
    status, _, err = run_main(capsys, of_images, "--data", "a", "--run.workdir", "run")
    assert status == 2 and "a has other" in err, err
    status, _, err = run_main(capsys, of_images, "--data", "saved", "--run.workdir", "run")
    assert status == 0, err
    status, _, err = run_main(capsys, of_images, "--run.workdir", "run")
    assert status == 2 and "--data: a in the folder, digits now" in err, err


def test_streamed_sets_have_names_and_sizes_as_their_fingerprint(tmp_path, monkeypatch):
    write_pictures(tmp_path / "a")
    monkeypatch.setattr("ssljax.data.sources.RESIDENT_BYTES", 10)

    def read(folder: pathlib.Path) -> dict:
        with fingerprint.reading() as found:
            assert isinstance(images(str(folder), "train"), OnDisk)
        return found[str(folder)]["training images"]

    first = read(tmp_path / "a")
    assert first["count"] == 37
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert read(tmp_path / "b") == first
    with open(tmp_path / "b" / "class0" / "001.bmp", "ab") as file:
        file.write(b"0")
    changed = read(tmp_path / "b")
    assert changed["digest"] != first["digest"] and changed["count"] == 37
    (tmp_path / "a" / "class0" / "001.bmp").rename(tmp_path / "a" / "class0" / "001b.bmp")
    assert read(tmp_path / "a")["digest"] != first["digest"]


@pytest.mark.parametrize("read", [images, documents, labelled_documents, text_pairs, recordings])
def test_an_empty_name_is_not_the_current_folder(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("", " "):
        with pytest.raises(InputError, match="name of the data is empty"):
            read(name, "train", *[100] * (read is recordings))


def test_texts_are_reported_by_the_name_given(tmp_path):
    (tmp_path / "a.txt").write_text("one two three\n" * 50)
    (tmp_path / "b.txt").write_text("four five six\n" * 50)
    name = f"{tmp_path / 'a.txt'},{tmp_path / 'b.txt'}"
    with fingerprint.reading() as found:
        documents(name, "train")
        documents("python:validation", "test")
        labelled_documents("python", "train")
    assert found.keys() == {name, "python:validation", "python"}
    assert found[name]["training texts"]["count"] == 2
    before = found[name]["training texts"]["digest"]
    (tmp_path / "b.txt").write_text("four five sex\n" * 50)
    with fingerprint.reading() as found:
        documents(name, "train")
    assert found[name]["training texts"]["digest"] != before
    with fingerprint.reading() as found:
        pass
    documents(name, "train")
    assert found == {}


@pytest.mark.parametrize("change", ["value", "order", "labels", "dtype", "shape"])
def test_digest_of_arrays_sees_every_change(change):
    x, y = np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.arange(2)
    other = {
        "value": {"image": x ^ (np.arange(24).reshape(2, 3, 4) == 17).astype(np.uint8)},
        "order": {"image": x[::-1]},
        "labels": {"labels": y[::-1]},
        "dtype": {"image": x.view(np.int8)},
        "shape": {"image": x.reshape(2, 4, 3)},
    }[change]
    content = {"image": x, "labels": y, "class_names": ["a", "b"]}
    assert fingerprint.digest(content) == fingerprint.digest({**content, "image": x.copy()})
    assert fingerprint.digest(content) != fingerprint.digest({**content, **other})
    assert fingerprint.digest(["ab", "c"]) != fingerprint.digest(["a", "bc"])


def test_data_from_python_is_compared(tmp_path):
    exp, run = tiny(num_steps=2), Run(workdir=str(tmp_path))
    train(exp, run)
    train(exp, run)
    digits = images("digits", "train")
    fewer = feed(Arrays(digits.image[:-1], digits.labels[:-1], digits.class_names), 32)
    with pytest.raises(InputError, match="has 1436 training examples now, 1437 when the run"):
        train(replace(exp, data=fewer), run)
    other = feed(Arrays(255 - digits.image, digits.labels, digits.class_names), 32)
    with pytest.raises(InputError, match="The data has other training examples than when"):
        train(replace(exp, data=other), run)
    with pytest.raises(InputError, match="began in Python, of an experiment whose arguments"):
        record.check_record(tmp_path, record.computes_of({"lr": 0.1}))


# Damaged files.


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"3",
        b"{}",
        b'{"computes": []}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_record_is_one_sentence(tmp_path, capsys, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    flags = ("--num-steps", "2", "--run.workdir", "here")
    assert run_main(capsys, tiny, *flags)[0] == 0
    (tmp_path / "here" / "record.json").write_bytes(content)
    status, _, err = run_main(capsys, tiny, *flags)
    assert status == 2 and len(err.strip().splitlines()) == 1, err
    assert "record.json is damaged" in err and "choose another --run.workdir" in err


def paths_in(x, path=()):
    """Every path in a tree of JSON."""
    yield path
    for k, y in x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ():
        yield from paths_in(y, (*path, k))


def test_a_record_with_anything_missing_or_of_another_type_ends_in_no_traceback(tmp_path, capsys):
    from ssljax.ledger.rows import row

    folder = tmp_path / "run"
    flags = ("--num-steps", "2", "--run.workdir", str(folder))
    assert run_main(capsys, tiny, *flags)[0] == 0
    whole = json.loads((folder / "record.json").read_text())
    checked = 0
    for path in paths_in(whole):
        for damage in ("missing", None, 7, "text", [], {}):
            changed = json.loads(json.dumps(whole))
            at = changed
            for key in path[:-1]:
                at = at[key]
            if not path:
                changed = damage
            elif damage == "missing":
                del at[path[-1]]
            else:
                at[path[-1]] = damage
            (folder / "record.json").write_text(json.dumps(changed))
            computes = {**whole["computes"]}
            for read in (
                lambda: record.check_record(folder, computes, read=whole["read"]),
                lambda: record.facts(folder),
                lambda: row([folder], ["test/error"]),
            ):
                try:
                    read()
                except InputError as e:
                    said = str(e)
                    assert "\n" not in said or said.count("--") > 0
                checked += 1
    assert checked > 300


def test_a_folder_or_no_file_in_place_of_the_record_is_one_sentence(tmp_path):
    run = Run(workdir=str(tmp_path))
    train(tiny(num_steps=2), run)
    (tmp_path / "record.json").unlink()
    with pytest.raises(InputError, match="holds checkpoints but no record.json"):
        train(tiny(num_steps=2), run)
    (tmp_path / "record.json").mkdir()
    with pytest.raises(InputError, match="record.json is damaged"):
        train(tiny(num_steps=2), run)


# Locks.

HOLD = """
import pathlib, sys
from ssljax.lock import lock
with lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: pathlib.Path) -> subprocess.Popen:
    """A process that holds a folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_in_a_folder_names_the_first(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = hold(tmp_path / "here")
    try:
        flags = ("--num-steps", "2", "--run.workdir", "here")
        status, _, err = run_main(capsys, tiny, *flags)
        assert status == 2 and len(err.strip().splitlines()) == 1, err
        assert f"here is in use by process {other.pid} of " in err and " since 2" in err
        assert "stop it, or choose another --run.workdir" in err
        assert os.listdir("here") == ["lock"]
    finally:
        other.kill()
        other.wait()
    status, _, err = run_main(capsys, tiny, *flags)  # The kernel has released the lock.
    assert status == 0, err
    assert "lock" not in os.listdir("here")


def test_locks_end_with_their_context(tmp_path, capsys):
    refused = pytest.raises(InputError, match=f"process {os.getpid()} of")
    with lock(tmp_path / "a"), refused, lock(tmp_path / "a"):
        pass
    assert not (tmp_path / "a").exists()  # Made for the lock alone.
    with pytest.raises(KeyError), lock(tmp_path):
        raise KeyError
    with lock(tmp_path):
        pass
    assert tmp_path.exists() and capsys.readouterr().out == ""
    (tmp_path / "lock").write_text("process 1 of somebody on another-host, since 2026-01-01, `x`\n")
    with lock(tmp_path):
        pass
    assert "was not released by process 1 of somebody on another-host" in capsys.readouterr().out
    (tmp_path / "lock").write_bytes(b"\xff\x00\n")
    with lock(tmp_path):
        pass


def test_two_processes_agree_on_a_lock(tmp_path):
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    program = (
        f"import jax, sys; jax.distributed.initialize('127.0.0.1:{port}', 2, int(sys.argv.pop(1)));"
        "from tests.tiny import tiny; from ssljax import main; main(tiny)"
    )
    env = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    args = ["--run.workdir", str(tmp_path / "run"), "--num-steps", "2"]
    with lock(tmp_path / "run"):
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(i), *args],
                env=env,
                cwd=ROOT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for i in range(2)
        ]
        said = [w.communicate(timeout=240)[0] for w in workers]
    assert [w.returncode for w in workers] == [2, 2], said
    for text in said:
        assert f"in use by process {os.getpid()} of" in text and "Traceback" not in text, said


# The repository that an experiment file lies in.


@pytest.fixture
def project(tmp_path, monkeypatch):
    """git(*words) in a repository with method.py and other.py, committed, of no user's settings."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    (tmp_path / "project" / "code").mkdir(parents=True)
    for name in ("method.py", "other.py"):
        (tmp_path / "project" / "code" / name).write_text("x = 1\n")

    def git(*words: str) -> str:
        who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
        command = ["git", *who, "-C", tmp_path / "project", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "code/method.py", "code/other.py")
    git("commit", "-qm", "first")
    git.file = tmp_path / "project" / "code" / "method.py"
    return git


def test_record_has_the_commit_of_the_experiments_repository(project, tmp_path):
    project("remote", "add", "origin", "https://ann:secret@host.org:8443/ann/code.git?token=secret")
    source = str(project.file)
    record.write_record(tmp_path / "run", None, {}, source, 0, {})
    launch = json.loads((tmp_path / "run" / "record.json").read_text())["launches"][0]
    assert launch["repository"] == {
        "commit": project("rev-parse", "--short=10", "HEAD"),
        "remote": "https://host.org:8443/ann/code.git",
    }
    assert launch["commit"] == record.commit() != launch["repository"]["commit"]
    assert launch["versions"]["ssljax"] == ssljax.__version__
    assert "secret" not in (tmp_path / "run" / "record.json").read_text()


def test_commit_has_a_plus_where_tracked_files_or_the_experiment_differ(project):
    at = project("rev-parse", "--short=10", "HEAD")
    folder, source = project.file.parent, str(project.file)
    (folder.parent / "runs").mkdir()
    (folder.parent / "runs" / "new.txt").touch()  # What a run writes is no change.
    assert record.repository(source) == {"commit": at, "remote": ""}
    assert record.repository(str(folder / "new.py"))["commit"] == f"{at}+"
    (folder / "other.py").write_text("x = 2\n")
    assert record.repository(source)["commit"] == f"{at}+"
    project("commit", "-qam", "second")
    assert record.repository(source)["commit"] == project("rev-parse", "--short=10", "HEAD") != at


def test_no_commit_is_recorded_outside_a_repository(project, tmp_path, monkeypatch):
    (tmp_path / "method.py").touch()
    assert record.repository(str(tmp_path / "method.py")) is None
    monkeypatch.setenv("PATH", str(tmp_path))  # Without git.
    assert record.repository(str(project.file)) is None


@pytest.mark.parametrize(
    "remote, kept",
    [
        ("git@host.org:ann/code.git", "git@host.org:ann/code.git"),
        ("ssh://git:secret@host.org/code", "ssh://host.org/code"),
        ("https://secret@host.org/code#secret", "https://host.org/code"),
        ("/srv/code.git", "/srv/code.git"),
        ("file:///srv/code.git", "file:///srv/code.git"),
    ],
)
def test_address_of_a_remote_has_no_secrets(project, remote, kept):
    project("remote", "add", "upstream", remote)
    assert record.repository(str(project.file))["remote"] == kept
