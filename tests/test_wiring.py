"""What the evaluators of every experiment read: which set, which net, and with which statistics."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import record, sharding
from ssljax.evals.evaluator import Evaluator
from tests.test_experiments import FILES, make, SMALL

# Parts of the state that features are computed from, by file, or by file and evaluator. Elsewhere
# they are the trained encoder and, where it has BatchNorm, its running averages.
READS = {
    "audio_dae/log_mel": (),
    "bigan": ("params/enc", "extra/enc"),
    "colourise": ("params",),
    "cpc": ("params",),
    "cpc/log_mel": (),
    "cvae": ("params/encoder",),
    "dcgan": ("params/disc", "extra/disc"),
    "dino": ("extra/teacher/encoder", "extra/seen/encoder"),  # The teacher: section 4.1.
    "gradients": ("params/params/UNet_0",),
    "ibot": ("extra/teacher/encoder",),  # As in DINO.
    "ijepa": ("extra/teacher/encoder",),  # The target encoder: section 4.
    "inpainting": ("params/0/encoder",),
    "simcse": ("params/model",),
    "wav2vec2": tuple(f"params/net/params/{x}" for x in ("context", "into", "norm", "waves")),
    "wav2vec2/log_mel": (),
}
TRAINED = ("params/encoder", "extra/encoder")


@pytest.fixture(scope="module", params=FILES, ids=lambda f: f.stem)
def built(request):
    """(name of the file, tiny experiment, state made by hand)."""
    exp = make(request.param, 3)
    mesh = sharding.make_mesh()
    batch = jax.eval_shape(exp.data.batch, exp.data.resident(), next(exp.data.feed(0, 0, mesh)))
    shapes = jax.eval_shape(exp.init, jax.random.key(0), batch)
    return request.param.stem, exp, by_hand(shapes)


def by_hand(shapes, seed=0):
    """A state in which no two arrays are alike: teacher and student, batch and running averages."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros(x.shape, x.dtype) if x.dtype != jax.random.key(0).dtype else x
        if "var" in name(path).rsplit("/")[-1]:
            return jnp.asarray(rng.uniform(0.5, 2, x.shape), x.dtype)
        return jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def inside(path, parts):
    return any(name(path) == p or name(path).startswith(p + "/") for p in parts)


def moved(state, chosen):
    """The state with other numbers in the arrays whose path is `chosen`; and how many those are."""
    other, count = by_hand(state, seed=1), 0

    def pick(path, a, b):
        nonlocal count
        count += chosen(path)
        return b if chosen(path) else a

    return jax.tree_util.tree_map_with_path(pick, state, other), count


def encoders(file, exp):
    """(parts of the state that it reads, encoder, examples) of every evaluator of features."""
    found = {}
    for evaluator, e in exp.evals.items():
        if isinstance(e, Evaluator) and e.encode is not None:
            reads = READS.get(f"{file}/{evaluator}", READS.get(file, TRAINED))
            found[id(e.encode)] = reads, jax.jit(e.encode), e.queries.read(np.arange(12))["image"]
    if not found:
        pytest.skip("no evaluator of features")
    return found.values()


def test_features_are_computed_from_the_evaluated_net_alone(built):
    """From the encoder, not its head; from the teacher where the paper says so; from averages."""
    file, exp, state = built
    for reads, encode, x in encoders(file, exp):
        z = encode(state, x)
        rest, count = moved(state, lambda path: not inside(path, reads))
        assert count > 0
        np.testing.assert_array_equal(encode(rest, x), z)
        for part in reads:
            changed, count = moved(state, lambda path: inside(path, [part]))
            if count:
                assert not np.allclose(encode(changed, x), z), f"{part} is not read"
            else:
                assert part == "extra/encoder", f"there is no {part}"


def test_features_of_an_image_do_not_depend_on_its_batch(built):
    file, exp, state = built
    for _, encode, x in encoders(file, exp):
        z, other = encode(state, x[:8]), encode(state, np.concatenate([x[:4], x[8:12]]))
        scale = np.abs(z).max()
        np.testing.assert_allclose(z[:4] / scale, other[:4] / scale, atol=1e-5)


def test_features_are_the_encoders_output(built):
    """Of an image as it is, in evaluation: what the module gives on the state's own arrays."""
    file, exp, state = built
    make_experiment = getattr(importlib.import_module(f"experiments.{file}"), file)
    known = inspect.signature(make_experiment).parameters
    which = next((k for k in ("encoder", "vit") if k in known), None)
    if which is None:
        pytest.skip("its net has no module of its own as an argument")
    net = SMALL.get(which, known[which].default)
    params, *stats = READS.get(file, TRAINED)

    def part(prefix):
        tree = state
        for key in prefix.split("/"):
            tree = getattr(tree, key) if hasattr(tree, key) else tree.get(key, {})
        return tree

    variables = part(params)
    if "params" not in variables:
        variables = {"params": variables, "batch_stats": part(stats[0]) if stats else {}}
    for _, encode, x in encoders(file, exp):
        expected = net.apply(variables, x / np.float32(255))
        found = encode(state, x)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_fine_tuning_starts_from_the_net_that_is_evaluated(built):
    file, exp, state = built
    if exp.kept is None:
        pytest.skip("no net is kept")
    paths = record.kept_form(exp.kept, state)
    params, *stats = READS.get(file, TRAINED)
    assert paths["params"].removesuffix("/params") == params
    assert paths["stats"] in ("", *stats)
    kept = exp.kept(state)
    variables = {"params": kept.params, "batch_stats": kept.stats}
    for _, encode, x in encoders(file, exp):
        expected = encode(state, x)
        found = kept.net.apply(variables, x / np.float32(255))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_evaluators_compute_the_features_of_the_experiment(built):
    file, exp, _ = built
    found = {
        evaluator: e.encode
        for evaluator, e in exp.evals.items()
        if isinstance(e, Evaluator) and e.encode is not None
    }
    if not found:
        pytest.skip("no evaluator of features")
    floors = [name for name in found if READS.get(f"{file}/{name}") == ()]
    assert exp.encode is not None
    assert all(encode is exp.encode for name, encode in found.items() if name not in floors)


def test_classifiers_of_features_learn_from_training_images_and_are_asked_others(built):
    _, exp, _ = built
    resident = exp.data.resident()
    rows = next((resident[k] for k in ("image", "tokens") if k in resident), None)
    if rows is None:
        pytest.skip("no set of examples")
    training = {row.tobytes() for row in np.asarray(rows)}

    def share(data):
        found = np.asarray(data.read(np.arange(len(data)))["image"])
        return np.mean([row.tobytes() in training for row in found])

    checked = 0
    for evaluator, e in exp.evals.items():
        if not isinstance(e, Evaluator) or not hasattr(e.queries, "read"):
            continue
        if e.encode is not None or not e.pictures:
            assert share(e.queries) < 0.3, f"{evaluator} is measured on training images"
            checked += 1
        if hasattr(e.bank, "read"):
            assert share(e.bank) == 1, f"{evaluator} learns from other images"
            assert len(e.bank) == len(rows), f"{evaluator} learns from fewer images"
    if not checked:
        pytest.skip("no evaluator of a set of examples")
