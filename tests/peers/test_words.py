"""Word vectors against gensim: an update, subsampling, and the tests of likeness and analogies."""

import logging

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.data.words import keep_probability
from ssljax.evals.words import analogies, similarity
from ssljax.losses.words import cbow_loss, skip_gram_loss
from tests.peers.torch_side import agree_with_gradients, tensor


def test_skip_gram(row):
    """Skip-gram with negative sampling, value and gradients

    Equation 4 over the pairs in PyTorch, the expectation over the negatives as their mean.
    """
    functional = row.peer("torch.nn.functional")
    rng = np.random.default_rng(0)
    v, u, n = (rng.normal(size=(3, s, 8)).astype(np.float32) for s in (6, 10, 5))
    near = rng.random((3, 6, 10)) < 0.3

    def theirs(v, u, n):
        total = 0.0
        for b, t, s in np.argwhere(near):
            total = total - functional.logsigmoid(v[b, t] @ u[b, s])
            total = total - 4 * functional.logsigmoid(-n[b] @ v[b, t]).mean()
        return total

    ours = lambda v, u, n: skip_gram_loss(v, u, jnp.asarray(near), n, 4)
    agree_with_gradients(row, 1e-5, ours, theirs, v, u, n)


def test_cbow(row):
    """CBOW with negative sampling, value and gradients

    The mean of the neighbours in PyTorch.
    """
    functional = row.peer("torch.nn.functional")
    rng = np.random.default_rng(0)
    v, u, n = (rng.normal(size=(3, s, 8)).astype(np.float32) for s in (10, 6, 5))
    near = rng.random((3, 6, 10)) < 0.3

    def theirs(v, u, n):
        total = 0.0
        for b, t in np.argwhere(near.any(-1)):
            h = v[b][tensor(near[b, t])].mean(0)
            total = total - functional.logsigmoid(h @ u[b, t])
            total = total - 4 * functional.logsigmoid(-n[b] @ h).mean()
        return total

    ours = lambda v, u, n: cbow_loss(v, u, jnp.asarray(near), n, 4)
    agree_with_gradients(row, 1e-5, ours, theirs, v, u, n)


def pair_model(row):
    """gensim on the text "often rare", where every negative is "often"; its vectors before."""
    word2vec = row.peer("gensim.models.word2vec")
    logging.getLogger("gensim").setLevel(logging.ERROR)
    model = word2vec.Word2Vec(
        vector_size=16, sg=1, negative=1, window=1, min_count=1, sample=0, workers=1, seed=3,
        alpha=0.25, min_alpha=0.25, epochs=1, ns_exponent=6.0,
    )  # fmt: skip
    model.build_vocab([["often"] * 1000 + ["rare"]])
    rng = np.random.default_rng(0)
    model.wv.vectors[:] = 0.3 * rng.normal(size=(2, 16)).astype(np.float32)
    model.syn1neg[:] = 0.3 * rng.normal(size=(2, 16)).astype(np.float32)
    return model, model.wv.vectors.copy(), model.syn1neg.copy()


def skip_gram_step(v, u, pairs: list[tuple[int, int, bool]], rate: float = 0.25):
    """Descends pair by pair (input, output, with a negative); word 0 is the negative."""
    v, u = v.astype(np.float64), u.astype(np.float64)
    for i, o, negative in pairs:

        def loss(v, u, i=i, o=o, k=float(negative)):
            return skip_gram_loss(v[None, [i]], u[None, [o]], jnp.ones((1, 1, 1)), u[None, [0]], k)

        dv, du = jax.grad(loss, argnums=(0, 1))(jnp.asarray(v), jnp.asarray(u))
        v, u = v - rate * np.asarray(dv), u - rate * np.asarray(du)
    return v, u


def test_skip_gram_update(row):
    """Skip-gram's update of two words

    gensim and word2vec.c skip a negative that is the positive; equation 4 doesn't exclude it, and
    ours draws it. Converted: without that negative. What remains is gensim's sigmoid, which it
    looks up in a table of 1,000 values.
    """
    model, v, u = pair_model(row)
    model.train([["often", "rare"]], total_examples=1, epochs=1)
    moved = lambda v1, u1: np.concatenate([v1 - v, u1 - u])
    theirs = moved(model.wv.vectors, model.syn1neg)
    skipped = skip_gram_step(v, u, [(1, 0, False), (0, 1, True)])
    row.agree(moved(*skipped), theirs, 3e-2)
    drawn = skip_gram_step(v, u, [(1, 0, True), (0, 1, True)])
    row.differ(moved(*drawn), theirs, 0.1)


def test_subsampling(row):
    """Probability that a word is kept

    gensim's `sample_int` / 2³² for 60 words between rare and common.
    """
    word2vec = row.peer("gensim.models.word2vec")
    logging.getLogger("gensim").setLevel(logging.ERROR)
    counts = {f"w{i}": int(1.25**i) + i for i in range(60)}
    model = word2vec.Word2Vec(vector_size=4, min_count=1, sample=1e-3)
    model.build_vocab_from_freq(counts)
    words = list(counts)
    theirs = np.array([model.wv.get_vecattr(w, "sample_int") for w in words]) / 2**32
    ours = keep_probability(np.array(list(counts.values())), 1e-3)
    row.agree(ours, np.minimum(theirs, 1), 1e-8)


def keyed(row):
    """gensim's vectors of 40 words, and ours."""
    keyedvectors = row.peer("gensim.models.keyedvectors")
    logging.getLogger("gensim").setLevel(logging.ERROR)
    words = [f"w{i}" for i in range(40)]
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    vectors = keyedvectors.KeyedVectors(6)
    vectors.add_vectors(words, x)
    return vectors, words, x


def test_similarity(row, tmp_path):
    """WordSim: Spearman's correlation

    gensim's `evaluate_word_pairs`.
    """
    vectors, words, x = keyed(row)
    rng = np.random.default_rng(1)
    pairs = [(*rng.choice(words, 2, replace=False), float(rng.random())) for _ in range(60)]
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{a}\t{b}\t{s}\n" for a, b, s in pairs))
    theirs = vectors.evaluate_word_pairs(str(path))[1].statistic
    row.agree(similarity(lambda _: x, words, pairs)(None)["spearman"], theirs, 1e-6)


def test_analogies(row, tmp_path):
    """Analogies: share solved

    gensim's `evaluate_word_analogies`, in two sections; eight of 200 are made solvable.
    """
    vectors, words, x = keyed(row)
    rng = np.random.default_rng(2)
    questions = []
    for i in range(200):
        a, b, c, d = rng.choice(40, 4, replace=False)
        if i < 8:
            x[d] = x[b] / np.linalg.norm(x[b]) - x[a] / np.linalg.norm(x[a]) + x[c]
        questions.append((*(words[j] for j in (a, b, c, d)), "gram" if i % 2 else "capitals"))
    vectors.vectors[:] = x
    vectors.fill_norms(force=True)
    path = tmp_path / "questions.txt"
    lines = []
    for section in ("capitals", "gram"):
        lines += [f": {section}", *(" ".join(q[:4]) for q in questions if q[4] == section)]
    path.write_text("\n".join(lines) + "\n")
    theirs = 100 * vectors.evaluate_word_analogies(str(path))[0]
    assert theirs > 0
    row.agree(analogies(lambda _: x, words, questions)(None)["accuracy"], theirs, 1e-9)
