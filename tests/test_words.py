"""Text of word vectors: words, subsampling, blocks, and a step against word2vec's own updates."""

from dataclasses import replace
import math
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.word2vec import word2vec
from ssljax import Run, train
from ssljax.data.words import keep_probability, plain_words, split_words, vocabulary, WordBlocks
from ssljax.errors import InputError
from tests.test_data import batches, mesh_of


def test_plain_words(tmp_path):
    (tmp_path / "x.txt").write_text("It's 2 o'clock, Zoë_said: «ÉTÉ».\n" + 9 * "x ")
    words = " ".join(plain_words(str(tmp_path / "x.txt")).text).split()
    assert words[:8] == ["it", "s", "o", "clock", "zoë", "said", "été", "x"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("हिन्दी में लिखा।", ["हिन्दी", "में", "लिखा"]),
        ("ภาษา ไทย, น้ำ", ["ภาษา", "ไทย", "น้ำ"]),
        ("Tiếng Việt", ["tiếng", "việt"]),
        ("שָׁלוֹם עוֹלָם", ["שָׁלוֹם", "עוֹלָם"]),
        ("می‌خواهم", ["می‌خواهم"]),
        ("Ελληνικά 한국어 学习", ["ελληνικά", "한국어", "学习"]),
    ],
)
def test_words_of_all_scripts_keep_their_marks(text, words):
    words = [unicodedata.normalize("NFC", w) for w in words]
    for form in ("NFC", "NFD"):
        assert split_words(unicodedata.normalize(form, text)) == words


def test_mostly_rare_words_are_refused_and_their_share_is_printed(tmp_path, capsys):
    file = tmp_path / "x.txt"
    file.write_text("a b c " * 10 + "d")
    tokens = vocabulary(str(file), 5)[1]
    assert len(tokens) == 30
    assert "left out: 3.23 % of the text, words that occur less than 5" in capsys.readouterr().out
    file.write_text(" ".join("学习没有标签的表示"[i % 9] * (i + 1) for i in range(40)))
    with pytest.raises(InputError, match="100.0 % of the words of .* put spaces between"):
        vocabulary(str(file), 5)
    file.write_text("1 2 3 " * 20)
    with pytest.raises(InputError, match="100.0 % of the words"):
        vocabulary(str(file), 5)


def test_frequent_words_are_left_out_as_word2vec_leaves_them():
    count = np.array([500, 300, 150, 50])
    for c, p in zip(count, keep_probability(count, 0.01)):
        f = c / 1000
        assert p == pytest.approx(min(1, math.sqrt(0.01 / f) + 0.01 / f))
    assert keep_probability(count, 0).tolist() == [1] * 4


def text(n=20_000, sample=0.01):
    tokens = np.random.default_rng(0).choice(4, n, p=[0.5, 0.3, 0.15, 0.05]).astype(np.int32)
    return WordBlocks(tokens, np.bincount(tokens), 16, 8, 2, sample)


def test_epochs_are_subsampled_independently():
    data = text()
    first, second = data.segment(0, 0), data.segment(0, 1)
    p = keep_probability(data.count, 0.01)
    for word in range(4):
        n = (first == word).sum()
        assert abs(n - data.count[word] * p[word]) < 5 * math.sqrt(data.count[word] * p[word])
    assert len(first) != len(second) or (first != second).any()
    np.testing.assert_array_equal(first, data.segment(0, 0))
    assert (text(sample=0).segment(3, 1) == text().tokens).all()


def test_blocks_are_the_text_and_a_function_of_seed_and_step():
    data = text(sample=0)
    data = replace(data, tokens=np.arange(20_000, dtype=np.int32), count=np.ones(20_000, int))
    got = np.stack([b["words"] for b in batches(data, 5, 0, 4 * data.steps, mesh_of(1))])
    assert got.shape[1:] == (16, 12) and (np.diff(got, axis=-1) % 20_000 == 1).all()
    epochs = [set(part.ravel()) for part in np.split(got[:, :, 2:-2], 4)]
    assert all(len(words) == data.steps * 16 * 8 for words in epochs), "No word twice in an epoch."
    assert len(set.intersection(*epochs)) < len(epochs[0]) and len(set.union(*epochs)) == 20_000, (
        "None is always left out."
    )
    for a, b in zip(got[data.steps - 1 :], batches(data, 5, data.steps - 1, 3, mesh_of(8))):
        np.testing.assert_array_equal(a, b["words"])
    with pytest.raises(
        InputError, match="is too short for a step of 16 blocks of 8: choose a smaller --batch-size"
    ):
        text(100)


@pytest.fixture(scope="module")
def small():
    sizes = {"width": 8, "batch_size": 16, "length": 8, "shared": 4, "at_once": 16}
    return lambda **changes: word2vec(**sizes | changes)


@pytest.mark.parametrize("model", ["skip-gram", "cbow"])
def test_the_first_steps_move_rows_by_hand(small, model):
    """Against a loop over words: rows move by the sum or the mean of their gradients."""
    exp = small(model=model, lr=0.1)
    batch = exp.data.batch((), jnp.asarray(next(exp.data.feed(0, 0, None))))
    state = exp.init(jax.random.key(0), batch)
    state = state.replace(
        params=jax.tree.map(
            lambda x: jax.random.normal(jax.random.key(x.shape[0]), x.shape) / 3, state.params
        )
    )
    new, metrics = jax.jit(exp.step)(state, batch, jax.random.key(1))

    k1, k2 = jax.random.split(jax.random.key(1))
    reach = np.asarray(jax.random.randint(k1, (16, 8, 1), 1, 6))[..., 0]
    count = exp.data.count**0.75 / np.sum(exp.data.count**0.75)
    drawn = np.searchsorted(
        np.cumsum(count).astype(np.float32), np.asarray(jax.random.uniform(k2, (16, 4)))
    )
    a, b = (np.asarray(state.params[k], np.float64) for k in ("in", "out"))
    da, db, words = np.zeros_like(a), np.zeros_like(b), np.asarray(batch["words"])
    ca, cb = np.zeros((len(a), 1)), np.zeros((len(b), 1))  # The terms that each row is in.
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    for block, reaches, noise in zip(words, reach, drawn):
        for i, r in enumerate(reaches):
            near = [i + 5 + o for o in range(-r, r + 1) if o]
            centre, context = block[i + 5], block[near]
            told = (
                [(a[centre], [centre], c) for c in context]
                if model == "skip-gram"
                else [(a[context].mean(0), context, centre)]
            )
            for h, rows, target in told:
                dh = -(1 - sigmoid(h @ b[target])) * b[target]
                db[target] += -(1 - sigmoid(h @ b[target])) * h
                cb[target] += 1
                for n in noise:
                    dh = dh + 5 / 4 * sigmoid(h @ b[n]) * b[n]
                    db[n] += 5 / 4 * sigmoid(h @ b[n]) * h
                    cb[n] += 5 / 4
                for row in rows:
                    da[row] += dh / len(rows)
                    ca[row] += 6 / len(rows)
    assert cb.max() > 1 / 0.1 > np.median(cb[cb > 0]), (
        "Some rows go by their sums, and some by their means."
    )
    np.testing.assert_allclose(
        new.params["in"], a - da * np.minimum(0.1, 1 / np.maximum(ca, 1e-9)), atol=2e-5
    )
    np.testing.assert_allclose(
        new.params["out"], b - db * np.minimum(0.1, 1 / np.maximum(cb, 1e-9)), atol=2e-5
    )
    assert new.step == state.step == 0 and np.isfinite(metrics["loss"])


def test_layouts_move_the_vectors_alike(small, devices):
    found = {}
    for n, fsdp in ((1, 1), (8, 1), (8, 4)):
        devices(n)
        exp = replace(
            small(at_once=8), num_steps=3, evals={}, partition=lambda path, x, mesh: _split(x, mesh)
        )
        found[n, fsdp] = jax.device_get(train(exp, Run(fsdp=fsdp)).params)
    for other in ((8, 1), (8, 4)):
        for a, b in zip(jax.tree.leaves(found[1, 1]), jax.tree.leaves(found[other])):
            np.testing.assert_allclose(a, b, atol=1e-6)


def _split(x, mesh):
    from ssljax.sharding import fsdp

    return fsdp("", x, mesh, min_size=1)


def test_blocks_at_once_must_divide_a_step(small):
    with pytest.raises(InputError, match="--at-once 3 must divide --batch-size 16"):
        small(at_once=3)


def test_words_that_go_together_come_together(tmp_path, one_device):
    """Two topics of ten words that never meet: each word's nearest is of its own."""
    rng = np.random.default_rng(0)
    topics = [[f"{name}{c}" for c in "abcdefghij"] for name in ("sea", "land")]
    (tmp_path / "x.txt").write_text(
        "\n".join(" ".join(rng.choice(topics[i % 2], 60)) for i in range(400))
    )
    exp = word2vec(
        data=str(tmp_path / "x.txt"), width=16, batch_size=32, at_once=8, epochs=5, sample=0
    )
    state = train(replace(exp, evals={}))
    table = exp.evals["nearest"](state)["words"]
    for line in table.splitlines():
        word, others = line.split(maxsplit=1)
        assert all(o.startswith(word[:3]) for o in others.split(", ")[:5]), line
