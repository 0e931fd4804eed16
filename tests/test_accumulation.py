"""Gradient accumulation: a batch in parts gives the step of the whole batch."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax import alternate, descend, ema, InputError, minimize, Run, sharding, train, TrainState
from ssljax.accumulation import accumulated, by_parts
from ssljax.losses.infonce import enqueue, info_nce_loss, nt_xent_loss
from ssljax.losses.language import masked_lm_loss
from ssljax.losses.redundancy import barlow_twins_loss, vicreg_loss
from ssljax.models.encoder import Chain
from ssljax.models.mlp import MLP
from ssljax.models.transformer import LanguageModel, Transformer
from tests.test_experiments import FILES, make
from tests.tiny import tiny

KEY = jax.random.key(1)
TX = optax.adam(1e-2)
BATCH = {"image": jax.random.normal(jax.random.key(7), (24, 6)), "label": jnp.arange(24) % 3}


def same(a, b, atol=3e-6):
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        size = np.abs(np.asarray(x)).max() if np.size(x) else 0
        np.testing.assert_allclose(y, x, atol=atol * size + 1e-8, err_msg=str(path))


def both(step, state, parts):
    """The new state and metrics of a step of the whole batch, in parts, and how."""
    other, found = accumulated(step, parts)
    return jax.jit(step)(state, BATCH, KEY), jax.jit(other)(state, BATCH, KEY), found


@pytest.mark.parametrize("parts", [2, 3])
def test_a_mean_over_examples_has_the_step_of_the_whole_batch(parts):
    """With a teacher and a centre that move once a step, and metrics that are means."""
    net = MLP((8, 3))
    params = net.init(jax.random.key(0), BATCH["image"])

    def loss(params, state, batch, key):
        y = net.apply(params, batch["image"])
        slow = ema(state.extra["teacher"], params, 0.9)
        old = state.extra["centre"]
        centre = 0.9 * old + 0.1 * jax.lax.stop_gradient(y).mean(0)
        each = optax.softmax_cross_entropy_with_integer_labels(y - old, batch["label"])
        extra = {"teacher": slow, "centre": centre, "seen": state.extra["seen"] + 1}
        return each.mean(), (extra, {"loss": each.mean(), "right": (y.argmax(-1) == 1).mean()})

    extra = {"teacher": params, "centre": jnp.ones(3), "seen": jnp.zeros((), jnp.int32)}
    state = TrainState.create(TX, params, **extra)
    whole, split, found = both(minimize(TX, loss), state, parts)
    same(whole, split)
    assert str(found) == f"in {parts} parts whose gradients are averaged"


def of_a_user(a, b):
    """A contrastive loss that says nothing of accumulation."""
    return optax.softmax_cross_entropy_with_integer_labels(a @ b.T, jnp.arange(len(a))).mean()


@pytest.mark.parametrize(
    "loss", [nt_xent_loss, info_nce_loss, barlow_twins_loss, vicreg_loss, of_a_user]
)
def test_a_loss_that_compares_examples_sees_the_whole_batch(loss):
    net = Chain(encoder=MLP((16, 8)), head=MLP((8, 4)))
    params, stats = net.init(jax.random.split(jax.random.key(0)), BATCH["image"])

    def of(params, state, batch, key):
        x = batch["image"] + 0.1 * jax.random.normal(key, batch["image"].shape)
        z, new = net(params, state.extra, jnp.repeat(x, 2, axis=0), train=True)
        value = loss(z[0::2], z[1::2] ** 2 + 1)
        return value, (new, {"loss": value})

    state = TrainState.create(TX, params, **stats)
    whole, split, found = both(minimize(TX, of), state, 4)
    same(whole, split, atol=2e-5)
    assert "in 4 parts which nets compute twice, and the loss sees together" in str(found)


def test_a_queue_takes_the_whole_batch():
    net = Chain(encoder=MLP((8, 4)))
    params, stats = net.init([jax.random.key(0)], BATCH["image"])

    def loss(params, state, batch, key):
        z, _ = net(params, stats, batch["image"], train=True)
        value = info_nce_loss(z, 2 * z + 1, state.extra["queue"])
        return value, ({"queue": enqueue(state.extra["queue"], z)}, {"loss": value})

    queue = jax.random.normal(jax.random.key(3), (48, 4))
    whole, split, found = both(minimize(TX, loss), TrainState.create(TX, params, queue=queue), 3)
    same(whole, split, atol=2e-5)
    assert found.how == "representations"


def test_a_net_by_parts_draws_with_keys_of_its_own():
    """Noise within the net, as SimCSE's dropout: that of each part, and the whole loss of both."""

    def net(params, x, key):
        return (x + jax.random.normal(key, x.shape)) @ params, {}

    def loss(params, state, batch, key):
        z, _ = by_parts(net, params, batch["image"], key)
        value = info_nce_loss(z, z[::-1])
        return value, (state.extra, {"loss": value})

    def wanted(params, state, batch, key):
        z = jnp.zeros((24, 4))
        for i in range(3):
            part, _ = net(params, batch["image"][i::3], jax.random.fold_in(key, i))
            z = z.at[i::3].set(part)
        return info_nce_loss(z, z[::-1]), (state.extra, {"loss": info_nce_loss(z, z[::-1])})

    state = TrainState.create(TX, jnp.ones((6, 4)) + jnp.eye(6, 4))
    found = jax.jit(accumulated(minimize(TX, loss), 3)[0])(state, BATCH, KEY)
    same(jax.jit(minimize(TX, wanted))(state, BATCH, KEY), found, atol=2e-5)


def test_a_mean_over_tokens_is_that_of_the_whole_batch():
    """Rows have from 1 to 5 tokens that count, and two rows none: parts have other numbers."""
    weight = np.arange(5) < np.r_[np.tile(np.arange(1, 6), 5)[:22], 0, 0][:, None]
    tokens = jax.random.randint(jax.random.key(2), (24, 5), 0, 7)
    batch = {"image": BATCH["image"], "target": tokens, "weight": jnp.asarray(weight)}

    def loss(params, state, batch, key):
        logits = (batch["image"] @ params).reshape(-1, 5, 7)
        value = masked_lm_loss(logits, batch["target"], batch["weight"])
        return value, (state.extra, {"loss": value})

    state = TrainState.create(TX, jax.random.normal(jax.random.key(3), (6, 35)))
    for parts in (2, 12):
        split = accumulated(minimize(TX, loss), parts)[0]
        for given in (batch, batch | {"weight": jnp.zeros((24, 5))}):
            whole = jax.jit(minimize(TX, loss))(state, given, KEY)
            same(whole, jax.jit(split)(state, given, KEY), atol=2e-5)


def test_players_in_alternation():
    nets = {"disc": MLP((8, 1)), "gen": MLP((8, 6))}
    params = {name: net.init(jax.random.key(0), BATCH["image"]) for name, net in nets.items()}

    def disc(params, state, batch, key):
        fake = nets["gen"].apply(state.params["gen"], batch["image"][:, ::-1])
        score = lambda x: nets["disc"].apply(params, x)
        value = nn.softplus(-score(batch["image"])).mean() + nn.softplus(score(fake)).mean()
        return value, ({}, {"disc": value})

    def gen(params, state, batch, key):
        fake = nets["gen"].apply(params, batch["image"][:, ::-1])
        value = nn.softplus(-nets["disc"].apply(state.params["disc"], fake)).mean()
        return value, ({}, {"gen": value})

    whole, split, _ = both(alternate(TX, disc=disc, gen=gen), TrainState.game(TX, params), 4)
    same(whole, split, atol=2e-5)


def test_batchnorm_normalises_parts_and_says_so():
    """Statistics move once a step, to the mean of the parts'."""
    net = MLP((8, 3), norm=True)
    variables = net.init(jax.random.key(0), BATCH["image"])

    def loss(params, state, batch, key):
        given = {"params": params, **state.extra}
        y, stats = net.apply(given, batch["image"], True, mutable=["batch_stats"])
        return jnp.mean(y**2), (stats, {})

    extra = {"batch_stats": variables["batch_stats"]}
    state = TrainState.create(TX, variables["params"], **extra)
    whole, split, found = both(minimize(TX, loss), state, 2)
    assert "BatchNorm normalises each part by itself" in str(found)
    means = [x[0].extra["batch_stats"]["BatchNorm_0"]["mean"] for x in (whole, split)]
    np.testing.assert_allclose(means[1], means[0], rtol=1e-5)
    with pytest.raises(AssertionError):
        same(whole[0].opt_state, split[0].opt_state)


def test_draws_of_parts_differ():
    def loss(params, state, batch, key):
        noise = jax.random.normal(key, batch["image"].shape)
        return jnp.mean(params * noise), (state.extra, {"first": noise[0, 0], "all": noise.mean()})

    state = TrainState.create(TX, jnp.ones(6))
    step = jax.jit(accumulated(minimize(TX, loss), 2)[0])
    metrics = step(state, BATCH, KEY)[1]
    keys = [jax.random.fold_in(KEY, i) for i in range(2)]
    wanted = np.mean([jax.random.normal(key, (12, 6)).mean() for key in keys])
    np.testing.assert_allclose(metrics["all"], wanted, rtol=1e-5)


def test_what_cannot_be_accumulated_says_so():
    state = TrainState.create(TX, jnp.ones((6, 4)), rows=jnp.zeros((24, 4)))

    def compares(params, state, batch, key):
        z = batch["image"] @ params
        return nt_xent_loss(z, z**2), (state.extra, {})

    def carries(params, state, batch, key):
        z = batch["image"] @ params + state.extra["rows"]
        return jnp.mean(z), ({"rows": z}, {})

    def own(state, batch, key):
        params, opt, _ = descend(TX, lambda p: (jnp.sum(p), {}), state.params, state.opt_state)
        return state.replace(params=params, opt_state=opt), {}

    for step, sentence in (
        (minimize(TX, compares), "this loss compares the examples of a batch"),
        (minimize(TX, carries), "perhaps because extra has a row for each example"),
        (own, "this experiment has a step of its own"),
    ):
        with pytest.raises(InputError, match=sentence):
            jax.eval_shape(accumulated(step, 2)[0], state, BATCH, KEY)
    with pytest.raises(InputError, match="--run.accumulate 5 can't split the 24 examples"):
        jax.eval_shape(accumulated(minimize(TX, carries), 5)[0], state, BATCH, KEY)


COMPARES = [
    "barlow",
    "clip",
    "lejepa",
    "moco",
    "mocov3",
    "nnclr",
    "simclr",
    "simcse",
    "supcon",
    "swav",
    "vicreg",
    "wav2vec2",
]
REFUSES = {
    "awd_lstm": "extra has a row for each example",  # The hidden state of the text before.
    "cpc": "compares the examples of a batch",
    "inpainting": "a step of its own",
    "lstm": "extra has a row for each example",
    "sdae": "a step of its own",
    "word2vec": "a step of its own",
}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_experiment_is_accumulated_or_says_why_not(file, costly):
    costly(0 if file.stem in ("dcgan", "lstm", "mae", "simclr", "word2vec") else 1)
    exp, mesh = make(file, 2), sharding.make_mesh(devices=jax.devices()[:1])
    step, found = accumulated(exp.step, 2)
    with jax.set_mesh(mesh):
        batch = jax.eval_shape(exp.data.batch, exp.data.resident(), next(exp.data.feed(0, 0, mesh)))
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = jax.eval_shape(exp.init, key, batch)
        if file.stem in REFUSES:
            with pytest.raises(InputError, match=REFUSES[file.stem]):
                jax.eval_shape(step, state, batch, key)
            return
        new, _ = jax.eval_shape(step, state, batch, key)
    forms = [[(x.shape, x.dtype) for x in jax.tree.leaves(s)] for s in (state, new)]
    assert forms[0] == forms[1]
    assert found.how == ("representations" if file.stem in COMPARES else "gradients")


def test_a_run_in_parts_is_the_same_on_any_devices(devices, capsys):
    """Parts are the same rows of the batch, with the same noise and statistics."""
    states = []
    for n, fsdp in ((1, 1), (8, 4)):
        devices(n)
        exp = replace(tiny(num_steps=1), evals={}, partition=partial(sharding.fsdp, min_size=1))
        states.append(train(exp, Run(accumulate=2, fsdp=fsdp)))
    same(states[0].opt_state, states[1].opt_state, atol=1e-4)
    assert "1 step of 32 examples, in 2 parts whose gradients" in capsys.readouterr().out


def test_parts_stay_on_their_devices():
    """A language model on eight devices: gradients are summed, and nothing else moves."""
    mesh = sharding.make_mesh()
    model = LanguageModel(Transformer(2, 2, 16), 32)

    def loss(params, state, batch, key):
        logits = model.apply(params, batch["tokens"][:, :-1])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:])
        return each.mean(), (state.extra, {"loss": each.mean()})

    tokens = jax.ShapeDtypeStruct(
        (32, 9), jnp.int32, sharding=jax.NamedSharding(mesh, sharding.BATCH)
    )
    make = lambda: TrainState.create(
        TX, model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    )
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)),
        jax.eval_shape(make),
    )
    with jax.set_mesh(mesh):
        step = jax.jit(accumulated(minimize(TX, loss), 4)[0])
        text = step.lower(state, {"tokens": tokens}, jax.random.key(0)).compile().as_text()
    assert "all-reduce" in text
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        assert f"{kind}(" not in text, kind
