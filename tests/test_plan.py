"""Plans for machines that aren't there: names, FLOPs, HLO, memory, and the commands of the headers.

The tests that compile need the compilers of ssljax[plan], and are skipped without them.
"""

from dataclasses import replace
import errno
import importlib
import importlib.metadata
import json
import math
import pathlib
import re
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.gpt import gpt
from ssljax import cli, methods, sharding
from ssljax.__main__ import main as ssljax_main
from ssljax.data import Images
from ssljax.data.described import described
from ssljax.data.token_feeds import tokenized
from ssljax.data.token_rows import token_rows
from ssljax.errors import InputError
from ssljax.models import attention
from ssljax.models.mlp import MLP
from ssljax.models.resnet import ResNet
from ssljax.models.transformer import Transformer
from ssljax.plan import command, estimate, headers, hlo, machines, program, report
from ssljax.plan.__main__ import main as plan_main
from ssljax.plan.flops import count_flops
from ssljax.run import Run
from tests.tiny import tiny

NEED_A_RUN = ("finetune",)


def installed(*packages):
    try:
        return [importlib.metadata.version(package) for package in packages]
    except importlib.metadata.PackageNotFoundError:
        return []


compilers = pytest.mark.skipif(
    not installed("libtpu", "jax-cuda12-pjrt"), reason="needs the compilers of ssljax[plan]"
)


@pytest.mark.parametrize("name", ["h100x9", "h100x0", "h100x20", "b200x12"])
def test_gpus_fill_nodes(name):
    with pytest.raises(InputError, match="A node has 8 GPUs"):
        machines.machine_of(name)


@pytest.mark.parametrize("name", ["h10x8", "x8", "8", "v5e", "v9:4x4", "h100 x8", "h100x-8", "tpu"])
def test_unknown_machines_list_those_that_are_known(name):
    with pytest.raises(InputError, match=r"There is no machine .*a100xN.*v5e:16x16"):
        machines.machine_of(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("h100*8", "h100x8"),
        ("a1000x16", "a100x16"),
        ("v5e-16", "v5e:4x4"),
        ("v5litepod-256", "v5e:16x16"),
        ("v6e-12", "v6e"),
        ("v5e", "v5e"),
        ("h10", "h100"),
    ],
)
def test_a_machine_of_another_spelling_is_suggested(name, near):
    with pytest.raises(InputError, match=f"did you mean {near}[?]"):
        machines.machine_of(name)


def test_a_folder_that_cannot_be_is_refused_before_a_plan_is_made(tmp_path, monkeypatch, capsys):
    machine = machines.Machine("h100x8", machines.GPUS["h100"], range(8), 8)
    monkeypatch.setattr(command, "machine_of", lambda name: machine)
    monkeypatch.setattr(command, "plan_of", lambda *_: pytest.fail("compiled"))
    (tmp_path / "file").touch()
    for folder, sentence in (
        (f"{tmp_path}/file", "File exists"),
        (f"{tmp_path}/file/run", "Not a directory"),
        ("gs://bucket/run", "is an address, not a folder"),
    ):
        with pytest.raises(SystemExit):
            cli.main(tiny, ["--run.plan", "h100x8", "--run.workdir", folder])
        said = capsys.readouterr()
        assert sentence in said.err and "Traceback" not in said.err, said


@pytest.mark.parametrize("where", ["making", "writing", "searching"])
def test_a_plan_that_cannot_be_saved_is_printed(where, tmp_path, monkeypatch, capsys):
    """A read-only folder, and a disk that is full at once or once the largest batch is found."""
    machine = machines.Machine("h100x8", machines.GPUS["h100"], range(8), 8)
    monkeypatch.setattr(command, "machine_of", lambda name: machine)
    planned = lambda batch: replace(fake_plan(batch, 1e6 * batch, 8e10), machine="h100x8")
    monkeypatch.setattr(command, "plan_of", lambda make, given, *_: planned(given["batch_size"]))
    reason = PermissionError(errno.EACCES, "Permission denied", "folder")
    calls = []

    def write(file, text):
        calls.append(file)
        if where == "writing" or len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        file.write_text(text)

    def mkdir(self, *args, **kwargs):
        raise reason

    monkeypatch.setattr(report, "write_whole", write)
    if where == "making":
        monkeypatch.setattr(pathlib.Path, "mkdir", mkdir)
    with pytest.raises(SystemExit) as stopped:
        cli.main(tiny, ["--run.plan", "h100x8", "--run.workdir", str(tmp_path / "run")])
    out, err = capsys.readouterr()
    assert "Plan for h100x8" in out and "The largest batch that was found to fit is" in out
    assert ("Saved as" in out) == (where == "searching") and stopped.value.code == 2
    why = "Permission denied" if where == "making" else "No space left on device"
    assert err.startswith(f"error: The plan above could not be saved in {tmp_path}/run ({why}): ")
    assert len(err.splitlines()) == 1


def test_the_page_of_plans_ends_with_a_sentence(tmp_path, monkeypatch, capsys):
    """An experiment without a marked command, and a folder that can't be written to."""
    plan = lambda *_, **parts: fake_plan(8, 1e9, 2e9)
    monkeypatch.setattr(headers, "plan_command", plan)
    monkeypatch.setattr(headers, "FILE", tmp_path / "nowhere" / "plans.json")
    for args, words in (
        (["word2vec"], 'error: No header of experiments/ marks a command of word2vec as "planned'),
        (["dcgan"], f"error: No such file or directory ({tmp_path}/nowhere/"),
    ):
        with pytest.raises(SystemExit):
            plan_main(args)
        out, err = capsys.readouterr()
        assert err.startswith(words) and len(err.splitlines()) == 1, err
    assert "1 GB, fits" in out


@compilers
@pytest.mark.parametrize("name", ["v5e:3x5", "v5e:", "v5e:ax2"])
def test_topologies_that_no_tpu_has_are_refused(name):
    with pytest.raises(InputError, match="is no machine that its compiler knows"):
        machines.machine_of(name)


@pytest.mark.parametrize(
    ("name", "package"), [("h100x8", "jax-cuda12-pjrt"), ("v5e:2x2", "libtpu")]
)
def test_a_missing_compiler_is_named_with_its_extra(name, package, monkeypatch):
    def version(of):
        raise importlib.metadata.PackageNotFoundError(of)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(InputError, match=rf'{package}.*pip install "ssljax\[plan\]"'):
        machines.machine_of(name)


def test_a_compiler_of_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda of: "0.0.1")
    with pytest.raises(InputError, match=f"pip install .*=={jax.__version__}"):
        machines.machine_of("h100x8")


@compilers
def test_devices_of_machines():
    for name, count, per_node, platform in [
        ("h100x8", 8, 8, "gpu"),
        ("a100", 1, 1, "gpu"),
        ("h200x64", 64, 8, "gpu"),
        ("b200x4", 4, 4, "gpu"),
        ("V5E:2x2", 4, 4, "tpu"),
        ("v5e:1x1", 1, 1, "tpu"),
        ("v4:2x2x4", 16, 16, "tpu"),
    ]:
        machine = machines.machine_of(name)
        assert (machine.count, machine.per_node) == (count, per_node), name
        assert sharding.make_mesh(1, devices=list(machine.devices)).size == count
        assert machine.devices[0].platform == platform
        assert {d.process_index for d in machine.devices} >= set(range(count // per_node))


# FLOPs


def flops_of(f, *args):
    return count_flops(jax.make_jaxpr(f)(*args))


def xla_flops(f, *args):
    return jax.jit(f).lower(*args).cost_analysis()["flops"]


def convolution(stride, padding, groups, dilation):
    def f(w, x):
        y = jax.lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            padding,
            rhs_dilation=(dilation, dilation),
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jnp.sum(y)

    return f


@pytest.mark.parametrize(
    ("stride", "padding", "groups", "dilation", "kernel"),
    [
        (1, "SAME", 1, 1, 3),
        (2, "SAME", 1, 1, 3),
        (2, "VALID", 1, 1, 5),
        (1, "SAME", 4, 1, 3),
        (2, [(3, 2), (1, 4)], 8, 1, 3),
        (1, "SAME", 1, 2, 3),
    ],
)
def test_flops_of_convolutions_and_their_gradients_are_xlas(
    stride, padding, groups, dilation, kernel
):
    f = convolution(stride, padding, groups, dilation)
    args = jnp.ones((kernel, kernel, 8 // groups, 16)), jnp.ones((4, 12, 12, 8))
    for g in (f, jax.grad(f), jax.grad(f, argnums=1)):
        outside = math.prod(jax.eval_shape(lambda *a: f(*a), *args).shape)
        assert flops_of(g, *args).total == pytest.approx(xla_flops(g, *args), rel=0.02, abs=outside)


def block(x, w):
    y = nn.gelu(x @ w[0])
    return x + jax.nn.softmax(y @ w[1])


def test_flops_of_nets_are_near_xlas():
    x, w = jnp.ones((64, 32)), (jnp.ones((32, 128)), jnp.ones((128, 32)))
    q = jnp.ones((2, 24, 4, 8))

    def attention(q):
        return jnp.sum(jax.nn.dot_product_attention(q, q, q, is_causal=True) ** 2)

    for f, args in [
        (lambda x, w: jnp.sum(block(x, w)), (x, w)),
        (jax.grad(lambda x, w: jnp.sum(block(x, w))), (x, w)),
        (jax.grad(attention), (q,)),
        (lambda x: jnp.einsum("bthd,bshd->hts", x, x).sum(), (q,)),
    ]:
        assert flops_of(f, *args).total == pytest.approx(xla_flops(f, *args), rel=0.05)


def test_flops_of_a_scan_are_those_of_its_steps_unrolled():
    x, w = jnp.ones((16, 32)), (jnp.ones((32, 64)), jnp.ones((64, 32)))

    def unrolled(x, w):
        for _ in range(5):
            x = block(x, w)
        return jnp.sum(x)

    def scanned(x, w):
        return jnp.sum(jax.lax.scan(lambda c, _: (block(c, w), None), x, length=5)[0])

    def looped(x, w):
        return jnp.sum(jax.lax.fori_loop(0, 5, lambda _, c: block(c, w), x))

    once = flops_of(unrolled, x, w).products
    assert once == {"float32": 5 * 2 * 2 * 16 * 32 * 64}
    assert flops_of(scanned, x, w).products == once == flops_of(looped, x, w).products
    # A while loop that stops by what it computes is counted once, and said to be.
    halved = lambda x, w: jax.lax.while_loop(lambda c: jnp.sum(c) > 1, lambda c: block(c, w) / 2, x)
    found = flops_of(halved, x, w)
    assert found.unknown_loops == 1 and found.products == {"float32": once["float32"] / 5}


def test_flops_of_recomputation_custom_gradients_branches_and_types():
    x, w = jnp.ones((16, 32)), jnp.ones((32, 32))
    net = lambda w: jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ w))
    plain = flops_of(jax.value_and_grad(net), w).products["float32"]
    again = flops_of(jax.value_and_grad(jax.checkpoint(net)), w).products["float32"]
    assert plain == (2 + 3) * 2 * 16 * 32 * 32  # x has no gradient.
    assert again == plain + 2 * 2 * 16 * 32 * 32

    @jax.custom_vjp
    def f(w):
        return jnp.sum(x @ w)

    f.defvjp(lambda w: (f(w), w), lambda w, d: (d * x.T @ (x @ w) @ w,))
    assert flops_of(jax.value_and_grad(f), w).products["float32"] == 2 * (3 * 16 * 32 * 32 + 32**3)
    branch = lambda w: jax.lax.cond(w[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)
    assert flops_of(branch, w).products == {"float32": 2 * 2 * 16 * 32 * 32}
    half = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    assert flops_of(lambda a, b: a @ b, *half).products == {"bfloat16": 2 * 16 * 32 * 32}


@compilers
def test_flops_of_cudnns_attention():
    """Two products forward and five backward, of which plain attention has four."""
    mesh = sharding.make_mesh(1, devices=list(machines.machine_of("h100x1").devices))
    q = jax.ShapeDtypeStruct((4, 128, 2, 64), jnp.bfloat16)
    f = lambda q: jnp.sum(attention.attend(q, q, q).astype(jnp.float32) ** 2)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), attention.assumed_cudnn():
        found = flops_of(jax.value_and_grad(f), q).products
    assert found == {"bfloat16": 7 * 2 * 4 * 2 * 128 * 128 * 64}


# HLO

TEXT = """HloModule jit_step, is_scheduled=true

FileNames
1 "/x/site-packages/flax/linen/linear.py"
2 "/home/me/mine.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=2 end_column=2}
2 {file_name_id=1 function_name_id=1 line=99 end_line=99 column=2 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%picked (p: f32[1000,10], i: s32[]) -> f32[2,10] {
  %p = f32[1000,10]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %rows = f32[2,10]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={2,10}
}

%body (t: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %t = (s32[], /*index=1*/f32[8,4]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%t), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%t), index=1
  %part = f32[2,4]{1,0} slice(%x), slice={[0:2], [0:4]}
  %gathered = f32[8,4]{1,0} all-gather(%part), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, metadata={op_name="g" stack_frame_id=2}
  ROOT %out = (s32[], f32[8,4]{1,0}) tuple(%n, %gathered)
}

%condition (t.1: (s32[], f32[8,4])) -> pred[] {
  %t.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (data: f32[1000,10], at: s32[], w: f32[8,4], v: bf16[100]) -> f32[8,4] {
  %data = f32[1000,10]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %w = f32[8,4]{1,0:T(8,128)} parameter(2)
  %v = bf16[100]{0} parameter(3)
  %batch = f32[2,10]{1,0} fusion(%data, %at), kind=kLoop, calls=%picked
  %zero.1 = s32[] constant(0)
  %start = (s32[], f32[8,4]{1,0}) tuple(%zero.1, %w)
  %loop = (s32[], f32[8,4]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %y = f32[8,4]{1,0} get-tuple-element(%loop), index=1
  %both = (f32[8,4]{1,0}, bf16[100]{0}) all-reduce-start(%y, %v), replica_groups=mesh['a'=2,'b'=4] {'a','b'}, to_apply=%add, metadata={op_name="r" stack_frame_id=1}
  %done = (f32[8,4]{1,0}, bf16[100]{0}) all-reduce-done(%both)
  %z = f32[8,4]{1,0} get-tuple-element(%done), index=0
  ROOT %sent = f32[8,4]{1,0} collective-permute(%z), source_target_pairs={{0,1},{1,2}}
}
"""  # noqa: E501


def test_collectives_of_hlo():
    found = {c.kind: c for c in hlo.collectives(hlo.parse(TEXT), 8, 4)}
    gather = found["all-gather"]  # Of columns: 0, 2, 4 and 6; three times.
    assert (gather.arrays, gather.bytes, gather.group, gather.nodes) == (3, 3 * 128, 4, 2)
    reduce = found["all-reduce"]
    assert (reduce.arrays, reduce.bytes, reduce.group, reduce.nodes) == (2, 128 + 200, 8, 2)
    # Innermost lines of what is no library.
    assert gather.line == "/home/me/mine.py:7" == reduce.line
    assert found["collective-permute"].nodes == 1


def test_a_kernels_text_with_brackets_ends_no_computation():
    kernel = '  %k = f32[8,4]{1,0} custom-call(%w), backend_config={"a": {\n}}, metadata={}\n'
    text = TEXT.replace("  %zero.1 =", f"{kernel}  %zero.1 =")
    assert hlo.collectives(hlo.parse(text), 8, 4) == hlo.collectives(hlo.parse(TEXT), 8, 4)


def test_groups_of_devices():
    for text, groups in [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
    ]:
        assert hlo._groups(text, 4) == groups, text


def test_bytes_moved_by_hlo():
    # Of a fusion that picks rows only these are read; a loop's instructions count for each turn.
    batch = 80 + 80 + 4
    loop = 3 * ((32 + 32) + (32 + 128))
    reduced = 2 * (128 + 200)
    permuted = 128 + 128
    assert hlo.bytes_moved(hlo.parse(TEXT)) == batch + loop + reduced + permuted


STACKED = """
%stack (p: f32[100,10], i: s32[], x: f32[10]) -> (f32[100,10], f32[10]) {
  %p = f32[100,10]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[10]{0} parameter(2)
  %zero = s32[] constant(0)
  %twice = f32[10]{0} add(%x, %x)
  %row = f32[1,10]{1,0} bitcast(%twice)
  %all = f32[100,10]{1,0} dynamic-update-slice(%p, %row, %i, %zero)
  ROOT %both = (f32[100,10]{1,0}, f32[10]{0}) tuple(%all, %twice)
}

ENTRY %main (rows: f32[100,10], at: s32[], new: f32[10]) -> f32[100,10] {
  %rows = f32[100,10]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %new = f32[10]{0} parameter(2)
  %fused = (f32[100,10]{1,0}, f32[10]{0}) fusion(%rows, %at, %new), kind=kLoop, calls=%stack
  %some = f32[100,10]{1,0} get-tuple-element(%fused), index=0
  %more = f32[10]{0} get-tuple-element(%fused), index=1
  %line = f32[1,10]{1,0} bitcast(%more)
  ROOT %last = f32[100,10]{1,0} dynamic-update-slice(%some, %line, %at, %at)
}
"""


def test_bytes_moved_by_an_update_in_place_are_those_of_the_update():
    """As of a scan that stacks its outputs: else its traffic would grow with the square of its
    steps."""
    row, number = 40, 4
    fused = (row + number) + 2 * row
    alone = (row + 2 * number) + row
    assert hlo.bytes_moved(hlo.parse(STACKED)) == fused + alone
    stack = lambda x, n: jax.lax.scan(lambda c, _: (jnp.sin(c) + 1, c * 2), x, length=n)[1]
    few, many = (
        hlo.bytes_moved(hlo.parse(jax.jit(stack, static_argnums=1).lower(x, n).compile().as_text()))
        for x, n in ((jnp.ones(1000), 100), (jnp.ones(1000), 200))
    )
    assert few < 100 * 8 * 4000 and many == pytest.approx(2 * few, rel=0.05)


def test_bytes_of_types():
    for text, size in [
        ("f32[2,3]{1,0}", 24),
        ("bf16[5]", 10),
        ("(s4[3], pred[4]{0}, f8e4m3fn[2])", 2 + 4 + 2),
        ("f32[]", 4),
        ("f32[8]{0:T(128)S(1)}", 0),  # In a TPU's own fast memory.
        ("(u32[2], token[])", 8),
    ]:
        assert hlo.bytes_of_type(text) == size, text


@pytest.mark.parametrize("kind", hlo.KINDS)
@pytest.mark.parametrize(("group", "nodes"), [(8, 1), (16, 2), (8, 8), (1, 1)])
def test_sent_bytes_are_least(kind, group, nodes):
    """What leaves a device: within nodes and between them, against algorithms that are known."""
    c = hlo.Collective(kind, "", 1, 1000.0, group, nodes)
    if kind == "collective-permute":
        assert c.sent == (1000.0 if group > 1 else 0.0)
    elif nodes == 1:
        assert c.sent_by_network == 0
        assert c.sent == pytest.approx(1000 * (group - 1) / group * (1 + (kind == "all-reduce")))
    else:
        local = group // nodes
        twice = 1 + (kind == "all-reduce")
        share = 1000.0 if kind == "all-to-all" else 1000.0 / local
        assert c.sent_by_network == pytest.approx(twice * share * (nodes - 1) / nodes)


# Data that isn't there


def test_sets_that_are_not_prepared_are_described(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with described():
        sets = Images("imagenet2012", image_size=64).read(whole=True)
        assert len(sets.train) == 1_281_167 and len(sets.test) == 50_000
        assert sets.train.num_classes == 1000 and sets.train.shape == (64, 64, 3)
        batch = sets.train.read(np.arange(2))
        assert batch["image"].dtype == np.uint8 and batch["aspect"].tolist() == [1, 1]
        with pytest.raises(InputError, match="--image-size 224"):
            Images("imagenet2012").read()
        with pytest.raises(InputError, match="There is no data set"):
            Images("imagenet2013").read()
    with pytest.raises(InputError, match="is not prepared"):
        Images("imagenet2012", image_size=64).read()
    assert not list(tmp_path.iterdir())


def test_texts_that_are_not_there_have_the_vocabulary_that_is_asked_for():
    with described():
        read = tokenized("nowhere/text.txt", "bpe", 50_257)
        assert read.size == 50_257 and read.train.nbytes > 2**29
        rows = token_rows("nowhere", "wordpiece", 30_522, 512)
        assert rows.size == 30_522 and rows.mask < 30_522 and rows.test.shape[1] == 512
        assert tokenized("python", "bpe", 500).train.nbytes < 2**29  # Embedded: as it is.
    with pytest.raises(InputError):
        tokenized("nowhere/text.txt", "bpe", 500)


@pytest.mark.parametrize("name", [name for name in methods.names() if name not in NEED_A_RUN])
def test_shapes_of_a_batch_are_those_that_a_run_feeds(name, costly):
    costly(methods.names().index(name))
    exp = getattr(importlib.import_module(f"experiments.{name}"), name)()
    mesh = sharding.make_mesh()
    fed = next(exp.data.feed(0, 0, mesh))
    found, resident = program.shapes_of_data(exp.data, mesh)
    form = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert form(found) == form(fed)
    assert form(resident) == form(exp.data.resident())
    batch = jax.eval_shape(exp.data.batch, resident, found)
    assert {len(x) for x in jax.tree.leaves(batch)} == {exp.data.batch_size}


# Programs


@compilers
@pytest.mark.parametrize("name", ["h100x8", "v5e:2x2"])
def test_a_step_is_planned_for_a_machine(name):
    machine = machines.machine_of(name)
    exp = tiny(width=512, norm=False)
    step = program.compile_step(exp, Run(), machine)
    shapes = jax.eval_shape(
        exp.init, jax.random.key(0), {"image": np.zeros((1, 8, 8, 1), np.uint8)}
    )
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    assert program.bytes_of(step.arguments["parameters"]) == size(shapes.params)
    assert program.bytes_of(step.arguments["optimizer"]) == size(shapes.opt_state)
    assert step.memory["arguments"] >= size(shapes.params) + size(shapes.opt_state)
    plan = estimate.plan_step(exp, Run(), machine)
    assert plan.fits and plan.devices == machine.count and sum(plan.memory.values()) == plan.total
    # Two layers, forward and backward, but for the pixels' gradient.
    assert plan.flops_by_type == {"float32": 2 * 32 * 64 * 512 * 5}
    reduced = [c for c in plan.collectives if c["kind"] == "all-reduce"]
    assert sum(c["bytes"] for c in reduced) == pytest.approx(size(shapes.params), abs=64)
    assert any("ssljax/models/" in c["line"] for c in reduced)
    assert 0 < plan.mfu <= 1 and plan.step_seconds == max(plan.seconds.values())
    text = report.describe(plan, machine)
    assert all(kind in text for kind in ("parameters", "optimizer", "all-reduce", "fits"))


@compilers
def test_fsdp_and_seeds_and_steps_are_those_of_the_run():
    machine, exp = machines.machine_of("h100x8"), tiny(width=8192, norm=False)
    one = estimate.plan_step(exp, Run(), machine)
    split = estimate.plan_step(exp, Run(fsdp=8), machine)
    assert split.memory["parameters"] < 0.2 * one.memory["parameters"]
    assert {c["kind"] for c in split.collectives} >= {"all-gather"}
    several = estimate.plan_step(exp, Run(seeds=3, lanes="vmap", steps_per_call=2), machine)
    assert several.memory["parameters"] == 3 * one.memory["parameters"]
    assert several.flops_by_type["float32"] == 3 * one.flops_by_type["float32"]
    with pytest.raises(InputError, match="multiple of 8"):
        estimate.plan_step(tiny(batch_size=12), Run(), machine)


@compilers
def test_gradients_of_a_transformer_are_summed_by_part_where_fsdp_splits_it():
    """Over four devices of eight, each part over the two that have it."""
    net = Transformer(layers=1, heads=2, width=256)
    with described():
        exp = gpt(net=net, length=32, batch_size=8)
    plan = estimate.plan_step(exp, Run(fsdp=4), machines.machine_of("h100x8"))
    shapes = jax.eval_shape(exp.init, jax.random.key(0), {"tokens": np.zeros((8, 32), np.int32)})
    kernels = sum(
        4 * x.size
        for path, x in jax.tree_util.tree_leaves_with_path(shapes.params)
        if re.search(
            r"/(qkv|out|up|gate|down)\d+/kernel$",
            jax.tree_util.keystr(path, simple=True, separator="/"),
        )
    )
    summed = {(c["kind"], c["devices"]): c["bytes"] for c in plan.collectives}
    assert summed["reduce-scatter", 4] == kernels
    assert summed["all-reduce", 2] == pytest.approx(kernels / 4, rel=0.01)


@compilers
def test_several_nodes_have_a_network():
    plan = estimate.plan_step(tiny(norm=False), Run(), machines.machine_of("h100x16"))
    assert plan.seconds["network"] > 0 and {c["nodes"] for c in plan.collectives} == {2}


@compilers
def test_from_16_to_256_chips_flops_of_a_chip_stay_and_gradients_cost_as_in_theory():
    plans = [
        estimate.plan_step(
            tiny(width=256, norm=False, batch_size=4 * n), Run(), machines.machine_of(name)
        )
        for name, n in (("v5e:4x4", 16), ("v5e:16x16", 256))
    ]
    few, many = plans
    assert many.flops_by_type["float32"] == 16 * few.flops_by_type["float32"]
    assert many.flops_per_device == pytest.approx(few.flops_per_device, rel=0.02)
    reduced = [
        sum(np.array([c["bytes"], c["sent_by_links"]]) for c in p.collectives) for p in plans
    ]
    assert reduced[0][0] == pytest.approx(reduced[1][0], rel=0.02)
    for p, (size, sent) in zip(plans, reduced):
        assert {c["kind"] for c in p.collectives} == {"all-reduce"}
        assert sent == pytest.approx(2 * size * (p.devices - 1) / p.devices)


def fake_plan(batch, total, available, devices=8):
    """A plan whose only figures are its memory's."""
    fits = total <= available
    return estimate.Plan(
        "m", devices, batch, {}, int(total), available, fits, *[0.0] * 1, {}, 0.0, None, 0, None,
        [], {}, 0.0, 0.0, 0.0, 1.0,
    )  # fmt: skip


@pytest.mark.parametrize("start", [8, 64, 4096, 2**20])
def test_the_largest_batch_is_found_in_few_programs(start):
    compiled = []

    def plan_of(batch):
        compiled.append(batch)
        return fake_plan(batch, 5e8 + 2e6 * batch, 80e9 // 1)

    first = fake_plan(start, 5e8 + 2e6 * start, 80e9 // 1)
    batch, total = estimate.largest_batch(first, plan_of, lambda line: None)
    most = (80e9 - 5e8) / 2e6
    assert 0.7 * most <= batch <= most and batch % 8 == 0 and len(compiled) <= 4
    assert total == 5e8 + 2e6 * batch


def test_the_largest_batch_fits_where_memory_jumps():
    total = lambda batch: 5e8 + 2e6 * batch + 60e9 * (batch > 20_000)
    plan_of = lambda batch: fake_plan(batch, total(batch), 80e9)
    batch, size = estimate.largest_batch(plan_of(4096), plan_of, lambda line: None)
    assert 8192 <= batch <= 20_000 and size == total(batch)


def test_no_batch_fits_where_the_state_alone_is_too_much():
    plan_of = lambda batch: fake_plan(batch, 90e9 + batch, 80e9)
    assert estimate.largest_batch(plan_of(64), plan_of, lambda line: None) is None


@compilers
def test_command_line_plans_without_training(tmp_path, capsys):
    workdir = tmp_path / "run"
    cli.main(tiny, ["--run.plan", "v5e:2x2", "--run.workdir", str(workdir)])
    out = capsys.readouterr().out
    assert "Plan for v5e:2x2" in out and "largest batch" in out
    assert [file.name for file in workdir.iterdir()] == ["plan-v5e-2x2.json"]
    saved = json.loads((workdir / "plan-v5e-2x2.json").read_text())
    assert saved["fits"] and saved["largest_batch"] >= 32
    cli.main(tiny, ["--num-steps", "4", "--run.workdir", str(workdir)])  # A run may follow.


def test_what_helps_is_compiled_where_a_step_does_not_fit(tmp_path, monkeypatch, capsys):
    machine = machines.Machine("h100x8", machines.GPUS["h100"], range(8), 8)
    monkeypatch.setattr(command, "machine_of", lambda name: machine)

    def plan_of(make, arguments, run, machine):
        encoder = arguments["encoder"]
        bytes_each = 2e7 / run.fsdp / run.accumulate / (2 if encoder.dtype == "bfloat16" else 1)
        bytes_each /= 4 if encoder.remat == "blocks" else 1
        total = bytes_each * arguments["batch_size"]
        return replace(fake_plan(arguments["batch_size"], total, 8e10), machine="h100x8")

    monkeypatch.setattr(command, "plan_of", plan_of)
    arguments = {"encoder": ResNet(), "head": MLP((8,)), "batch_size": 8192}
    found = command.plan(None, arguments, Run(plan="h100x8", workdir=str(tmp_path)))
    assert [(t["change"], t["fits"]) for t in found.tried] == [
        ("--dtype bfloat16", False),
        ("remat blocks", True),
        ("--run.accumulate 4", True),
        ("--run.fsdp 8", True),
        ("these together", True),
    ]
    out = capsys.readouterr().out
    assert "does not fit: 83.8 GB too much" in out and "remat blocks: 41 GB, fits" in out
    assert found.largest_batch == 3584  # Of 8 devices, in steps of an eighth.
    assert json.loads((tmp_path / "plan-h100x8.json").read_text())["tried"] == list(found.tried)


@compilers
def test_wrong_words_of_a_plan_are_one_sentence_and_leave_no_folder(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, sentence in (
        (["simclr", "h100x8"], "error: Give a machine, then an experiment: ssljax plan h100x8 sim"),
        (["h100x8"], "error: Give a machine, then an experiment"),
        (["h100x8", "simclrr"], "error: There is no experiment simclrr: did you mean simclr?"),
        (["v5e:3x5", "dcgan"], "error: v5e:3x5 is no machine that its compiler knows"),
        (["h100x8", "dcgan", "--batch-size", "100"], "error: A batch of 100 can't be split over"),
        (["h100x8", "dcgan", "--run.distributed"], "error: --run.plan compiles for all devices"),
    ):
        with pytest.raises(SystemExit) as stopped:
            ssljax_main(["plan", *words])
        err = capfd.readouterr().err
        assert stopped.value.code == 2 and err.startswith(sentence), err
        assert len(err.splitlines()) == 1, err
    assert not list(tmp_path.iterdir())


def test_an_unknown_machine_ends_a_command_line_at_once(tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        cli.main(tiny, ["--run.plan", "h101x8", "--run.workdir", str(tmp_path / "run")])
    assert e.value.code == 2 and "did you mean h100" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# Commands of the headers

MARKED = headers.marked_commands()


def test_page_of_plans_is_written_from_their_file():
    assert headers.PAGE.read_text() == headers.page(headers.read_plans())


def test_paper_commands_fit_where_they_were_planned():
    plans = headers.read_plans()
    assert plans.keys() <= {headers.key_of(*c) for c in MARKED}, "run python -m ssljax.plan"
    for key, found in plans.items():
        for machine in headers.MACHINES:
            p = found.get(machine, {"error": "not compiled"})
            assert p.get("fits") or "not compiled" in p["error"], (key, machine)
    assert len(MARKED) > 15 and plans


@compilers
@pytest.mark.parametrize("machine", headers.MACHINES)
@pytest.mark.parametrize("marked", MARKED, ids=lambda c: headers.key_of(*c)[:80])
def test_paper_commands_fit(marked, machine, request):
    """Minutes each."""
    if not request.config.option.long:
        pytest.skip("needs --long")
    assert headers.plan_command_where_it_splits(*marked, machine)[0].fits


def test_a_small_batch_is_planned_on_a_machine_that_can_split_it(monkeypatch):
    chips = {"v5e:16x16": 256, "v5e:8x8": 64, "v5e:4x4": 16}

    def plan_command(name, flags, machine, parts=None):
        if int(flags[1]) % (n := chips[machine]):
            raise InputError(f"A batch of {flags[1]} can't be split over the {n} devices")
        return machine

    monkeypatch.setattr(headers, "plan_command", plan_command)
    for batch, machine in ((512, "v5e:16x16"), (128, "v5e:8x8"), (48, "v5e:4x4")):
        flags = ("--batch-size", str(batch))
        found = headers.plan_command_where_it_splits("gan", flags, "v5e:16x16")
        assert found == (machine, None)
    with pytest.raises(InputError, match="100 can't be split over the 256"):
        headers.plan_command_where_it_splits("gan", ("--batch-size", "100"), "v5e:16x16")
    place = lambda name: SimpleNamespace(count=chips[name])
    monkeypatch.setattr(headers, "machine_of", place)
    for batch, parts, other in ((512, 8, 2), (4096, 8, None), (1536, 4, 2), (256, 8, 1)):
        flags = ("--batch-size", str(batch), "--run.accumulate", str(parts))
        found = headers.plan_command_where_it_splits("gan", flags, "v5e:16x16")
        assert found == ("v5e:16x16", other)
    key = headers.key_of(*MARKED[0])
    plan = {**headers.summary(fake_plan(128, 1e9, 2e9), 2), "machine": "v5e:8x8"}
    plan["seconds"] = {"memory": 1e-3}
    page = headers.page({key: {"v5e:16x16": plan}})
    assert f"`{MARKED[0][0]}` {headers._what(key)} on v5e:8x8, --run.accumulate 2 | 128 |" in page
