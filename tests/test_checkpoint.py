"""Checkpoints: resumed, loaded, damaged in every way, and their digests."""

import contextlib
import io
import logging
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ssljax import InputError, load, Run, sharding, train
from ssljax.checkpoint import _digest, Checkpoints, digests, host_digest
from tests.conftest import ROOT
from tests.tiny import tiny

TYPES = [
    "float32",
    "bfloat16",
    "float16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int32",
    "uint32",
    "int8",
    "uint8",
    "int16",
    "bool",
    "complex64",
    "int4",
    "uint4",
]


def state_of(step: int) -> dict:
    """A small state with arrays of several types."""
    key = jax.random.key(step)
    return {
        "step": jnp.int32(step),
        "params": {"kernel": jax.random.normal(key, (16, 24)), "bias": jnp.zeros(8, jnp.bfloat16)},
        "extra": [jnp.arange(5) + step, jnp.bool_(True)],
    }


def shapes_of(state: dict) -> dict:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def equal(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """A folder with the checkpoints of steps 10 and 20."""
    folder = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(folder, 3)
    for step in (10, 20):
        checkpoints.save(step, state_of(step))
    checkpoints.wait()
    checkpoints.close()
    return folder


@pytest.fixture
def copied(saved, tmp_path) -> pathlib.Path:
    """A copy of that folder, to be damaged."""
    return shutil.copytree(saved, tmp_path / "run")


def restored(folder: pathlib.Path) -> int:
    """The step that is restored, whose state must be the one saved."""
    checkpoints = Checkpoints(folder, 3)
    step, state = checkpoints.restore_latest(shapes_of(state_of(0)))
    checkpoints.close()
    assert equal(state, state_of(step))
    return step


def loaded(folder: pathlib.Path) -> int:
    """The step that is loaded, whose state must be the one saved."""
    state = load(folder).state
    step = int(state["step"])
    assert equal(state, state_of(step))
    return step


# Digests.


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 5, 7), (66_000,)])
def test_digest_is_the_same_on_the_device_and_the_host(kind, shape):
    x = 4 * np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x = jnp.asarray(x + 1j * x if kind == "complex64" else x).astype(kind)
    assert int(_digest(x)) == host_digest(np.asarray(x)) == digests([x])[0]


def test_digest_of_types_of_eight_bytes():
    with jax.enable_x64(True):
        for kind in ("float64", "int64", "uint64", "complex128"):
            x = jnp.asarray(np.random.default_rng(0).integers(0, 99, (3, 4))).astype(kind) * 2**40
            assert int(_digest(x)) == host_digest(np.asarray(x))


def test_digest_sees_every_single_flip_and_the_order():
    x = np.random.default_rng(0).standard_normal(70).astype(np.float32)
    bits = x.view(np.uint32)
    found = set()
    whole = host_digest(x)
    for i in range(len(x)):
        for b in range(32):
            other = bits.copy()
            other[i] ^= np.uint32(1 << b)
            found.add(host_digest(other.view(np.float32)))
    assert whole not in {host_digest(-x), host_digest(x[::-1]), host_digest(np.roll(x, 1))}
    assert whole not in found and len(found) == 70 * 32


@pytest.mark.parametrize("spec", [P(), P("data"), P(None, "fsdp"), P("data", "fsdp")])
def test_digest_does_not_depend_on_the_layout(spec):
    x = np.random.default_rng(0).standard_normal((16, 24)).astype(np.float32)
    mesh = sharding.make_mesh(2)
    there = jax.device_put(x, NamedSharding(mesh, spec))
    assert int(_digest(there)) == digests([there])[0] == host_digest(x)


def test_a_checkpoint_is_restored_in_another_layout(saved):
    mesh = sharding.make_mesh(2)
    split = {"kernel": P("data", "fsdp"), "bias": P("fsdp")}

    def shape(path, x):
        spec = split.get(path[-1].key, P()) if hasattr(path[-1], "key") else P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    shapes = jax.tree_util.tree_map_with_path(shape, state_of(0))
    checkpoints = Checkpoints(saved, 3)
    state = checkpoints.restore(20, shapes)
    checkpoints.close()
    assert equal(state, state_of(20))
    assert state["params"]["kernel"].sharding.spec == P("data", "fsdp")


# Damage.


def test_flipped_bits_in_any_file_never_give_wrong_weights(saved, tmp_path, capfd):
    """Two or three bits of each file of the newest step."""
    rng = np.random.default_rng(0)
    files = sorted(f for f in (saved / "checkpoints" / "20").rglob("*") if f.stat().st_size)
    files = [f for f in files if f.is_file()]
    steps = []
    for trial in range(24):
        folder = shutil.copytree(saved, tmp_path / str(trial))
        file = folder / files[trial % len(files)].relative_to(saved)
        content = bytearray(file.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(content)
        steps += [loaded(folder), restored(folder)]
    assert set(steps) == {10, 20} and steps.count(10) > 8
    said = capfd.readouterr()
    assert "Traceback" not in said.err + said.out and "Error" not in said.err
    assert said.out.count("Note: Damaged checkpoints") == steps.count(10)


def test_flipped_bits_in_the_weights_are_seen(saved, tmp_path):
    """Bits of the file with the compressed arrays: few are of no consequence."""
    rng = np.random.default_rng(1)
    files = (saved / "checkpoints" / "20" / "default" / "ocdbt.process_0" / "d").iterdir()
    path = max(files, key=lambda f: f.stat().st_size)
    steps = []
    for trial in range(20):
        folder = shutil.copytree(saved, tmp_path / str(trial))
        file = folder / path.relative_to(saved)
        content = bytearray(file.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(content)
        steps.append(loaded(folder))
    assert set(steps) <= {10, 20} and steps.count(10) >= 10


@pytest.mark.parametrize("damage", ["deleted", "empty", "cut", "zeros"])
def test_damaged_files_never_give_wrong_weights(saved, tmp_path, damage, capfd):
    names = [f.relative_to(saved) for f in (saved / "checkpoints" / "20").rglob("*") if f.is_file()]
    for i, name in enumerate(sorted(names)):
        folder = shutil.copytree(saved, tmp_path / str(i))
        content = (folder / name).read_bytes()
        if damage == "deleted":
            (folder / name).unlink()
        else:
            size = len(content)
            new = {"empty": b"", "cut": content[: size // 2], "zeros": bytes(size)}[damage]
            (folder / name).write_bytes(new)
        assert {loaded(folder), restored(folder)} <= {10, 20}
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["default", "digests", "default/ocdbt.process_0", "default/d"])
def test_missing_folders_in_a_step(copied, name, capsys):
    shutil.rmtree(copied / "checkpoints" / "20" / name)
    step = 20 if name == "digests" else 10
    assert loaded(copied) == restored(copied) == step
    said = capsys.readouterr().out
    assert ("can't be verified" in said) == (name == "digests")


def test_a_damaged_step_is_moved_aside_and_saved_again(copied, capsys):
    _spoil(copied / "checkpoints" / "20")
    assert restored(copied) == 10
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "step 20: " in said and "step 10 is whole" in said
    assert sorted(p.name for p in (copied / "checkpoints").iterdir()) == ["10"]
    assert [p.name for p in (copied / "damaged").iterdir()] == ["20"]
    checkpoints = Checkpoints(copied, 3)
    checkpoints.save(20, state_of(20))
    checkpoints.wait()
    checkpoints.close()
    assert restored(copied) == loaded(copied) == 20
    _spoil(copied / "checkpoints" / "20")
    assert restored(copied) == 10
    assert sorted(p.name for p in (copied / "damaged").iterdir()) == ["20", "20-again"]


def test_nothing_starts_from_scratch_where_all_steps_are_damaged(copied):
    for step in (10, 20):
        _spoil(copied / "checkpoints" / str(step))
    for read in (restored, loaded):
        with pytest.raises(InputError, match=r"No checkpoint in .* is whole \(step 20: .*step 10"):
            read(copied)
    assert sorted(p.name for p in (copied / "checkpoints").iterdir()) == ["10", "20"]


def test_a_run_resumes_from_the_last_whole_step(tmp_path, one_device, capsys):
    run = Run(workdir=str(tmp_path), save_every=10, keep=4)
    whole = train(tiny(), run)
    for step in (40, 30):
        _spoil(tmp_path / "checkpoints" / str(step))
    capsys.readouterr()
    again = train(tiny(), run)
    said = capsys.readouterr().out
    assert "Resuming from step 20 of 40" in said
    assert "step 40: " in said and "step 30: " in said and "step 20 is whole" in said
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
    assert equal(load(tmp_path).state["params"], whole.params)
    train(tiny(), run)
    assert "damaged" not in capsys.readouterr().out


def test_a_checkpoint_without_digests_is_restored_and_said_to_be_unverified(tmp_path, capsys):
    with ocp.CheckpointManager(
        tmp_path / "checkpoints", item_handlers=ocp.StandardCheckpointHandler()
    ) as manager:
        manager.save(10, args=ocp.args.StandardSave(state_of(10)))
    assert loaded(tmp_path) == restored(tmp_path) == 10
    said = capsys.readouterr().out
    assert said.count("saved no digests") == 2 and said.count("\n") == 2
    checkpoints = Checkpoints(tmp_path, 3)
    checkpoints.save(20, state_of(20))
    checkpoints.wait()
    checkpoints.close()
    assert loaded(tmp_path) == restored(tmp_path) == 20
    assert capsys.readouterr().out == ""


def test_two_processes_resume_from_the_last_whole_step(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    program = (
        f"import jax, sys; jax.distributed.initialize('127.0.0.1:{port}', 2, int(sys.argv.pop(1)));"
        "from tests.tiny import tiny; from ssljax import main; main(tiny)"
    )
    env = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    args = ["--run.workdir", str(tmp_path), "--num-steps", "20", "--run.save-every", "10"]

    def run() -> list[str]:
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
        assert [w.returncode for w in workers] == [0, 0], said
        return said

    run()
    whole = load(tmp_path).state
    _spoil(tmp_path / "checkpoints" / "20")
    said = run()
    assert "step 10 is whole" in said[0] and "Resuming from step 10 of 20" in said[0]
    assert "step 10 is whole" not in said[1] and [p.name for p in (tmp_path / "damaged").iterdir()]
    assert equal(load(tmp_path).state, whole)


def test_lack_of_memory_is_no_damage(copied, monkeypatch):
    def fails(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")

    monkeypatch.setattr("ssljax.checkpoint.digests", fails)
    with pytest.raises(ValueError, match="RESOURCE_EXHAUSTED"):
        restored(copied)
    assert sorted(p.name for p in (copied / "checkpoints").iterdir()) == ["10", "20"]


def test_reading_leaves_logging_and_hooks_as_they_were(copied):
    level, hook = logging.getLogger("asyncio").level, sys.unraisablehook
    _spoil(copied / "checkpoints" / "20")
    with contextlib.redirect_stdout(io.StringIO()):
        assert loaded(copied) == 10
    assert logging.getLogger("asyncio").level == level and sys.unraisablehook is hook


# Runs.


def test_keeps_n_checkpoints(tmp_path, one_device):
    train(tiny(), Run(workdir=str(tmp_path), save_every=5, keep=3))
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [30, 35, 40]


def test_loads_the_weights_of_another_run(tmp_path, one_device):
    state = train(tiny(), Run(workdir=str(tmp_path)))
    jax.tree.map(
        np.testing.assert_array_equal, load(tmp_path).state["params"], jax.device_get(state.params)
    )
    with pytest.raises(InputError, match="holds no checkpoint"):
        load(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds 1 seed: there is no lane 1"):
        load(tmp_path, 1)


@pytest.mark.parametrize("lanes", ["vmap", "loop"])
def test_checkpoints_of_several_seeds_have_digests(tmp_path, one_device, lanes):
    state = train(tiny(num_steps=4), Run(workdir=str(tmp_path), seeds=2, lanes=lanes))
    for lane in range(2):
        one = jax.tree.map(lambda x, lane=lane: np.asarray(x[lane]), state.params)
        assert equal(load(tmp_path, lane).state["params"], one)
    assert train(tiny(num_steps=4), Run(workdir=str(tmp_path), seeds=2)) is not None
    assert not (tmp_path / "damaged").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(width=8), r"BatchNorm_0/mean is float32\[16\] there and float32\[8\] here"),
        (dict(norm=False), r"is only there"),
    ],
)
def test_a_checkpoint_of_another_shape(tmp_path, one_device, change, message):
    train(tiny(num_steps=4), Run(workdir=str(tmp_path)))
    with pytest.raises(InputError, match=f"of another model: .*{message}"):
        train(tiny(num_steps=8, **change), Run(workdir=str(tmp_path)))
    assert not (tmp_path / "damaged").exists()


def test_a_half_written_checkpoint_is_not_picked_up(copied):
    half = copied / "checkpoints" / "30.orbax-checkpoint-tmp-0"
    half.mkdir()
    (half / "data").write_text("half")
    assert loaded(copied) == restored(copied) == 20


def _spoil(step: pathlib.Path) -> None:
    """Flips a bit in the middle of the largest file."""
    file = max((f for f in step.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
