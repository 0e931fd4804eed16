"""Encoder and decoder: attention across, decoding, span corruption, pairs of texts, T5's steps."""

from functools import partial
import gzip
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bert import bert
from experiments.finetune_text import finetune_text
from experiments.t5 import t5
from experiments.text_to_text import text_to_text
from ssljax import InputError, load
from ssljax.data import described, tokenizers
from ssljax.data.documents import Documents, documents
from ssljax.data.text_pairs import pair_rows, sentinel_ids, text_pairs, text_rows
from ssljax.data.tokenizers import load_tokenizer
from ssljax.evals.answers import filled, same_answers, span_nll
from ssljax.evals.features import round_up
from ssljax.losses.span_corruption import corrupt_spans, most_spans, noise_spans
from ssljax.models import attention
from ssljax.models.attention import biased_attention, distance_buckets
from ssljax.models.encoder_decoder import beam_search, decode, EncoderDecoder
from ssljax.models.transformer import LanguageModel, Transformer
from ssljax.pretrained import answers
from tests.saved_runs import random_state, save_run
from tests.test_data import batches, mesh_of
from tests.test_transformer import begun, naive

KEY = jax.random.key(0)
T5 = dict(positions="relative", unit="geglu")
FORMS = {
    "T5": T5,
    "Llama": {},
    "Vaswani": dict(norm="layer", positions="learned", unit="gelu", blocks="post-norm"),
    "odd heads": dict(**T5, head_width=6, hidden=20),
}


def made(form="T5", vocabulary=11, layers=2, width=8, scale=8.0, **changes):
    """A small net with weights large enough that its answers depend on its input."""
    net = Transformer(layers, 2, width, **(FORMS[form] | changes))
    model = EncoderDecoder(net, vocabulary)
    params = jax.jit(model.init)(KEY, jnp.zeros((1, 3), int), jnp.zeros((1, 4), int))
    rng = np.random.default_rng(0)
    draw = lambda x: x + (scale if x.ndim > 1 else 4) * 0.05 * rng.normal(size=x.shape).astype("f")
    return model, jax.tree.map(draw, params)


def test_distance_buckets_of_the_authors():
    """As `_relative_position_bucket` of transformers' T5 gives them (tests/peers compares all)."""
    far = [0, 1, 7, 8, 11, 12, 15, 16, 22, 23, 31, 32, 63, 64, 90, 91, 127, 128, 900]
    before = [0, 1, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 13, 14, 14, 15, 15, 15, 15]
    found = distance_buckets(-jnp.array(far), True)
    np.testing.assert_array_equal(found, before)
    after = [x + 16 * (d > 0) for x, d in zip(before, far)]
    np.testing.assert_array_equal(distance_buckets(jnp.array(far), True), after)
    one_sided = distance_buckets(-jnp.array([0, 15, 16, 18, 19, 127, 128, 500]), False)
    np.testing.assert_array_equal(one_sided, [0, 15, 16, 16, 17, 31, 31, 31])
    np.testing.assert_array_equal(distance_buckets(jnp.array([1, 40]), False), [0, 0])


@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_a_bias_matches_the_equation(causal):
    """softmax(q kᵀ / √d + b) v, by a loop in float64, and its gradient by b, by differences."""
    q, k, v = (jax.random.normal(key, (2, 4, 3, 5)) for key in jax.random.split(KEY, 3))
    bias, probe = jax.random.normal(KEY, (1, 3, 4, 4)), jax.random.normal(KEY, (2, 4, 3, 5))
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)[:, None, None]

    def loop(b):
        out = np.zeros(q.shape)
        for i, t, h in np.ndindex(2, 4, 3):
            at = [s for s in range(4) if mask[i, 0, 0, s] and (s <= t or not causal)]
            dots = [float(np.dot(np.float64(q[i, t, h]), np.float64(k[i, s, h]))) for s in at]
            w = np.exp([x / np.sqrt(5) + b[h, t, s] for x, s in zip(dots, at)])
            out[i, t, h] = sum(x * np.float64(v[i, s, h]) for x, s in zip(w / w.sum(), at))
        return out

    b = np.float64(bias[0])
    ours = lambda b: biased_attention(q, k, v, b, causal, mask)
    np.testing.assert_allclose(ours(bias), loop(b), atol=1e-5)
    grad = jax.grad(lambda b: jnp.sum(ours(b) * probe))(bias)[0]
    for at in [(0, 0, 0), (1, 2, 1), (2, 3, 2), (0, 3, 3)]:
        d = np.zeros(b.shape)
        d[at] = 1e-4
        slope = np.sum((loop(b + d) - loop(b - d)) * np.float64(probe)) / 2e-4
        np.testing.assert_allclose(grad[at], slope, atol=2e-4)


def test_decoder_matches_a_loop():
    """A decoder of one block, by hand in float64: its own tokens, the memory, then the unit."""
    net = Transformer(1, 2, 8, **T5)
    x, memory = (jax.random.normal(k, (2, n, 8)) for k, n in zip(jax.random.split(KEY), (4, 5)))
    mask = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    variables = jax.tree.map(
        lambda x: x + jax.random.normal(KEY, x.shape) / 3,
        net.init(KEY, x, True, memory=memory),
    )
    found, cache = net.apply(variables, x, True, memory=memory, memory_mask=mask)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    x, memory = np.float64(x), np.float64(memory)
    normed = lambda x, name: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p[name]["scale"]
    heads = lambda x: x.reshape(*x.shape[:2], 2, 4)
    q, k, v = map(heads, np.split(normed(x, "norm1a") @ p["qkv1"]["kernel"], 3, axis=-1))
    # A bias is one more channel of q and k for each distance: naive adds q · k / √d.
    own = np.stack([p["distances"][np.maximum(t - np.arange(4), 0)] for t in range(4)])
    q = np.concatenate([q, np.broadcast_to(own.swapaxes(1, 2), (2, 4, 2, 4)) * np.sqrt(8)], -1)
    q[..., :4] *= np.sqrt(8) / 2
    k = np.concatenate([k, np.broadcast_to(np.eye(4)[:, None], (2, 4, 2, 4))], -1)
    sees = [[[s <= t for s in range(4)] for t in range(4)]] * 2
    attended = naive(q, k, np.concatenate([v, v], -1), sees)[..., :4]
    x = x + attended.reshape(2, 4, 8) @ p["out1"]["kernel"]
    q = heads(normed(x, "norm1c") @ p["q1"]["kernel"])
    k, v = map(heads, np.split(memory @ p["kv1"]["kernel"], 2, axis=-1))
    np.testing.assert_allclose(cache[0][2], k, atol=1e-5)
    sees = [[list(map(bool, row))] * 4 for row in mask]
    x = x + naive(q, k, v, sees).reshape(2, 4, 8) @ p["cross1"]["kernel"]
    y = normed(x, "norm1b")
    gate = y @ p["gate1"]["kernel"]
    gelu = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    x = x + (gelu * (y @ p["up1"]["kernel"])) @ p["down1"]["kernel"]
    np.testing.assert_allclose(found, normed(x, "norm"), atol=1e-4)


@pytest.mark.parametrize("form", ["T5", "Llama"])
def test_decoder_sees_nothing_ahead_nor_padding(form):
    """To the bit: of targets those before a token, and of the input what is no padding."""
    model, params = made(form)
    logits = jax.jit(partial(model.apply, params))
    inputs, targets = np.array([[3, 4, 5, -1]]), np.array([[6, 7, 8, 9]])
    z = logits(inputs, targets)
    for i in range(4):
        other = targets.copy()
        other[0, i] = 2
        moved = np.abs(logits(inputs, other) - z).max((0, 2))
        assert not moved[: i + 1].any()
        assert (moved[i + 1 :] > 0).all()
    embedded = params["params"]["embed"]["embedding"]
    changed = {**params["params"], "embed": {"embedding": embedded.at[0].add(1.0)}}
    memory = lambda p: model.apply({"params": p}, inputs, method="encode")[:, :3]
    np.testing.assert_array_equal(memory(changed), memory(params["params"]))  # Token 0 fills it.
    assert np.abs(logits(np.array([[3, 4, 2, -1]]), targets) - z).min() > 0


@pytest.mark.parametrize("form", ["Vaswani", "odd heads"])
def test_greedy_answers_match_full_forward_passes(form):
    """With the cache, and keys and values of the memory that are computed once."""
    model, params = made(form, scale=20.0)
    inputs = jnp.array([[3, 4, 5, 6], [9, 2, -1, -1], [7, 7, 8, -1]])
    found = np.asarray(jax.jit(lambda x: decode(model, params, KEY, x, 6))(inputs))
    tokens, logits = np.full((3, 6), -1), jax.jit(model.apply)
    for i in range(6):
        tokens[:, i] = logits(params, inputs, tokens)[:, i].argmax(-1)
    for row, want in zip(found, tokens):
        end = list(want).index(1) if 1 in want else 6
        np.testing.assert_array_equal(row, [*want[:end], *[-1] * (6 - end)])
    assert len({tuple(row) for row in found}) > 1


def test_bfloat16_and_the_attention_of_accelerators(monkeypatch):
    """Logits within bfloat16's precision, and the same by JAX's attention with a bias."""
    model, params = made(scale=2.0)
    inputs, targets = jnp.array([[3, 4, 5, -1], [2, 2, 7, 9]]), jnp.array([[6, 7, 1], [4, 1, -1]])
    logits = lambda net: model.clone(net=net).apply(params, inputs, targets)
    found, half = logits(model.net), logits(model.net.clone(dtype="bfloat16"))
    assert half.dtype == jnp.float32
    assert 0 < np.abs(found - half).max() < 0.03 * np.abs(found).max()
    monkeypatch.setattr(attention, "platform", lambda: "tpu")
    np.testing.assert_allclose(logits(model.net), found, atol=1e-5)
    other = logits(model.net.clone(dtype="bfloat16"))
    np.testing.assert_allclose(other, half, atol=0.03 * np.abs(found).max())


def test_samples_follow_the_distribution():
    """Frequencies of two drawn tokens are within 4 standard errors of their probabilities."""
    model, params = made(vocabulary=4)
    n = 6000
    inputs = jnp.tile(jnp.array([[2, 3]]), (n, 1))
    found = np.asarray(jax.jit(lambda x: decode(model, params, KEY, x, 2, 0.8))(inputs))
    first = jax.nn.softmax(model.apply(params, inputs[:1], jnp.array([[-1, -1]]))[0, 0] / 0.8)
    for a in (0, 2, 3):
        rest = model.apply(params, inputs[:1], jnp.array([[a, -1]]))[0, 1]
        for b, q in enumerate(np.asarray(jax.nn.softmax(rest / 0.8))):
            p = float(first[a] * q)
            seen = np.mean((found[:, 0] == a) & (found[:, 1] == (-1 if b == 1 else b)))
            assert abs(seen - p) < 4 * np.sqrt(p * (1 - p) / n) + 1e-9
    assert abs(np.mean(found[:, 0] == -1) - first[1]) < 0.03


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beam_search_matches_exhaustive_search(penalty):
    """Of all answers that end within 4 tokens of a vocabulary of 5, by as many beams; and fewer
    beams find none better, with the score that their answer has."""
    model, params = made(vocabulary=5)
    inputs = jnp.array([[2, 3, 4], [4, -1, -1], [3, 3, 2]])
    answers = [(*s, 1) for n in range(4) for s in itertools.product((0, 2, 3, 4), repeat=n)]
    rows = np.array([[*s, *[-1] * (4 - len(s))] for s in answers])
    scores = {}
    for i in range(3):
        z = model.apply(params, jnp.tile(inputs[i], (len(rows), 1)), rows)
        logp = np.take_along_axis(jax.nn.log_softmax(z), np.maximum(rows, 0)[:, :, None], 2)[..., 0]
        total = np.where(rows >= 0, logp, 0).sum(1)
        total /= ((5 + (rows >= 0).sum(1)) / 6) ** penalty
        scores[i] = dict(zip(answers, total))
    search = jax.jit(partial(beam_search, model), static_argnums=(2, 3, 4))
    for beams in (64, 4, 1):
        found, score = map(np.asarray, search(params, inputs, 4, beams, penalty))
        for i in range(3):
            answer = (*found[i][found[i] >= 0].tolist(), 1)
            best = max(scores[i].values())
            assert len(answer) > 4 or score[i] == pytest.approx(scores[i][answer], abs=1e-4)
            assert score[i] <= best + 1e-4
            if beams == 64:
                assert score[i] == pytest.approx(best, abs=1e-4)


def test_one_beam_is_greedy():
    """With answers that end and such that don't."""
    model, params = made(vocabulary=4, form="odd heads")
    inputs = jnp.asarray(np.random.default_rng(1).integers(2, 4, (12, 5)))
    found, _ = jax.jit(lambda x: beam_search(model, params, x, 5, 1))(inputs)
    greedy = jax.jit(lambda x: decode(model, params, KEY, x, 5))(inputs)
    np.testing.assert_array_equal(found, greedy)
    assert 0 < np.sum(greedy[:, -1] < 0) < 12


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m, p, x: decode(m, p, KEY, x, 0), "at least 1 token"),
        (lambda m, p, x: beam_search(m, p, x, 3, 0), "at least 1 beam"),
        (lambda m, p, x: decode(m, p, KEY, x, 2, -1.0), "temperature"),
    ],
)
def test_bad_decoding(call, message):
    model, params = made()
    with pytest.raises(InputError, match=message):
        call(model, params, jnp.array([[3, 4]]))


def test_answers_beyond_learned_positions():
    model, params = made("Vaswani", reach=6)
    for search in (
        lambda x, n: decode(model, params, KEY, x, n),
        partial(beam_search, model, params),
    ):
        with pytest.raises(InputError, match="at most the 6 whose positions are learned, not 7"):
            search(jnp.array([[3, 4]]), 7)


def test_relative_positions_and_gates_in_a_causal_model():
    """A language model in this form continues with its cache as without it."""
    model = LanguageModel(Transformer(2, 2, 8, **T5), 9)
    tokens = jnp.array([[3, 4, 5, 6]])
    params = jax.tree.map(lambda x: 20 * x, model.init(KEY, tokens))
    empty = [(jnp.zeros((1, 6, 2, 4)),) * 2] * 2
    _, cache = model.apply(params, tokens[:, :2], empty, 0, method="extend")
    found, _ = model.apply(params, tokens[:, 2:], cache, 2, method="extend")
    np.testing.assert_allclose(found, model.apply(params, tokens)[:, -1], atol=1e-4)


# Span corruption.

SENTINELS = np.arange(100, 200)


def restored(inputs, targets):
    """The text that a corrupted input and its targets are of, and the spans by sentinel."""
    spans = {}
    for token in targets.tolist():
        if token >= 100:
            spans[token] = []
        else:
            spans[max(spans)].append(token)
    out = []
    for token in inputs.tolist():
        out += spans[token] if token >= 100 else [token]
    return out, spans


@pytest.mark.parametrize("length, share, span", [(64, 0.15, 3.0), (9, 0.5, 1.0), (40, 0.5, 10.0)])
def test_corrupted_inputs_and_targets_have_the_whole_text(length, share, span):
    """Rows of all lengths, full ones without padding; targets and inputs end with the end."""
    sizes = np.array([length, length, *range(2, length, 3)])
    rows = np.random.default_rng(0).integers(2, 100, (len(sizes), length))
    rows = np.where(np.arange(length) < sizes[:, None], rows, -1)
    corrupt = jax.jit(lambda k, x: corrupt_spans(k, x, SENTINELS, 1, share, span))
    inputs, targets = map(np.asarray, corrupt(KEY, rows))
    noise, spans = most_spans(length, share, span)
    assert inputs.shape == (len(rows), length - noise + spans + 1)
    assert targets.shape == (len(rows), noise + spans + 1)
    assert (inputs[:2] >= 0).all()
    assert (targets[:2] >= 0).all()
    for x, y, row, m in zip(inputs, targets, rows, sizes):
        x, y = x[x >= 0], y[y >= 0]
        assert x[-1] == y[-1] == 1
        text, found = restored(x[:-1], y[:-1])
        assert text == row[:m].tolist()
        assert list(found) == list(range(100, 100 + len(found)))  # Sentinels in order.
        left_out = max(1, min(m - 1, round(share * m)))
        assert sum(map(len, found.values())) == left_out
        assert len(found) == min(m - left_out, max(1, round(left_out / span)))


def test_span_statistics():
    """T5's setting: 15 % of the tokens are left out, in spans of 3 on average, anywhere."""
    begins, inside = jax.jit(lambda k: noise_spans(k, jnp.full(400, 512), 512))(KEY)
    assert inside.mean() == pytest.approx(0.15, abs=1e-3)
    assert inside.sum() / begins.sum() == pytest.approx(3.0, rel=0.03)
    lengths = np.diff(np.flatnonzero(np.diff(np.pad(np.asarray(inside), ((0, 0), (1, 1))).ravel())))
    sizes = np.bincount(lengths[::2])
    # A part of k in a random division of 77 into 26: C(77 - k - 1, 24) / C(76, 25).
    assert sizes[1] / sizes.sum() == pytest.approx(25 / 76, rel=0.05)
    assert sizes[2] / sizes.sum() == pytest.approx(25 / 76 * 51 / 75, rel=0.07)
    by_place = np.asarray(inside).mean(0)
    assert by_place[50:450].std() < 0.03  # 400 rows: a standard error of 0.018.


def test_spans_have_the_distribution_of_the_authors_code():
    """All masks of 8 tokens that leave out 3 in 2 spans, each with the same probability."""
    sizes = [
        (a, b, c, d)
        for a, b, c, d in itertools.product(range(1, 5), repeat=4)
        if a + c == 5 and b + d == 3
    ]
    want = {tuple([0] * a + [1] * b + [0] * c + [1] * d) for a, b, c, d in sizes}
    _, inside = jax.jit(lambda k: noise_spans(k, jnp.full(8000, 8), 8, 0.4, 1.5))(KEY)
    masks, counts = np.unique(np.asarray(inside, int), axis=0, return_counts=True)
    assert {tuple(m) for m in masks} == want
    np.testing.assert_allclose(counts / 8000, 1 / len(want), atol=4 * np.sqrt(1 / 8 / 8000))


def test_texts_too_short_to_leave_something_out():
    inputs, targets = corrupt_spans(KEY, jnp.array([[5, -1], [-1, -1], [5, 6]]), SENTINELS, 1)
    assert inputs.tolist() == [[5, 1, -1], [1, -1, -1], [5, 100, 1]]
    assert targets.tolist() == [[1, -1, -1], [1, -1, -1], [100, 6, 1]]


@pytest.mark.parametrize(
    "length, share, span, message",
    [(1, 0.15, 3, "2 tokens"), (8, 1.0, 3, "between 0 and 1"), (8, 0.5, 0.5, "at least 1 token")],
)
def test_impossible_spans(length, share, span, message):
    with pytest.raises(InputError, match=message):
        corrupt_spans(KEY, jnp.ones((2, length), int), SENTINELS, 1, share, span)


def test_more_spans_than_sentinels():
    with pytest.raises(InputError, match="3 spans, and there are 2 sentinels"):
        corrupt_spans(KEY, jnp.ones((2, 64), int), SENTINELS[:2], 1)


# Data.


def begun_batch(data):
    return batches(data, 0, 0, 1, mesh_of(1))[0]


def test_tokens_of_text_to_text():
    """Bytes without loss, T5's special tokens first, and sentinels last and in order."""
    docs = Documents(["the cat sat on the mat. " * 30, "Żółw, naïve — 漢字 🙂\n\ttab"])
    tokenizer = tokenizers.text_to_text(docs, 300)
    ids = sentinel_ids(tokenizer)
    assert tokenizer.token_to_id("<pad>") == 0
    assert tokenizer.token_to_id("</s>") == 1
    assert ids.tolist() == list(range(tokenizer.get_vocab_size() - 100, tokenizer.get_vocab_size()))
    for text in [*docs.text, "never seen: ¥\r\n"]:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
    assert tokenizer.encode("the cat").ids[-1] == 1
    with pytest.raises(InputError, match="258"):
        tokenizers.text_to_text(docs, 257)


def test_rows_of_texts_are_these_end_to_end(tmp_path, monkeypatch):
    """A newline after each, in memory and from a file of the cache."""
    texts = [f"document {i} " * (i % 7 + 1) for i in range(60)]
    lines = (json.dumps({"text": text}) for text in texts)
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    read = text_rows(str(tmp_path / "d.jsonl"), 280, 50)
    decoded = "".join(read.tokenizer.decode(row.tolist()) for row in read.train)
    want = "".join(f"{text}\n" for i, text in enumerate(texts) if i % 10)
    assert want.startswith(decoded[:-5])
    assert len(want) - len(decoded) < 400
    monkeypatch.setattr("ssljax.data.documents.IN_MEMORY", 100)
    large = text_rows(str(tmp_path / "d.jsonl"), 280, 50)
    assert not isinstance(large.train, np.ndarray)
    np.testing.assert_array_equal(large.train[:], read.train)
    np.testing.assert_array_equal(large.counts, read.counts)
    batch, rows = begun_batch(large.feed(4)), {row.tobytes() for row in read.train}
    assert all(np.asarray(row).tobytes() in rows for row in batch["tokens"])


def test_a_text_that_is_not_there_is_planned():
    """With as many tokens as it would have, and sentinels after them."""
    with described.described():
        read = text_rows("c4.jsonl", 300, 20)
        assert read.size == 400
        assert sentinel_ids(read.tokenizer).tolist() == list(range(300, 400))
        assert begun_batch(read.feed(4))["tokens"].shape == (4, 20)
    with pytest.raises(InputError, match="no file or folder"):
        text_rows("c4.jsonl", 300, 20)


PAIRS = [("one two", "two one"), ("a", "a"), ("x y z", "z y x"), ("naïve", "e\u0301")]


def test_files_of_pairs(tmp_path):
    """.tsv and .jsonl, compressed or not, have the same pairs, in composed form."""
    lines = "".join(f"{a}\t{b}\n" for a, b in PAIRS) + "\n"
    (tmp_path / "p.tsv").write_text(lines)
    with gzip.open(tmp_path / "q.tsv.gz", "wt") as file:
        file.write("Input\tTarget\n" + lines.replace("\n", "\r\n"))
    objects = [json.dumps({"input": a, "target": b, "id": 1}) for a, b in PAIRS]
    (tmp_path / "r.jsonl").write_text("\n".join(objects))
    for name in ("p.tsv", "q.tsv.gz", "r.jsonl"):
        train, test = (text_pairs(str(tmp_path / name), s) for s in ("train", "test"))
        assert list(zip(test.text, test.targets)) == PAIRS[:1]
        assert list(zip(train.text, train.targets)) == [*PAIRS[1:3], ("naïve", "é")]


def test_folders_of_pairs(tmp_path, capsys):
    (tmp_path / "train.tsv").write_text("a\tb\nc\td\n")
    (tmp_path / "valid.tsv").write_text("e\tf\n")
    assert text_pairs(str(tmp_path), "train").targets == ["b", "d"]
    assert text_pairs(str(tmp_path), "test").targets == ["f"]
    (tmp_path / "test.tsv").write_text("g\th\n")
    assert text_pairs(str(tmp_path), "test").targets == ["h"]
    assert "train.tsv to train; test.tsv to test; valid.tsv left out" in capsys.readouterr().out
    (tmp_path / "train_2.jsonl").write_text('{"input": "i", "target": "j"}')
    assert text_pairs(str(tmp_path), "train").targets == ["b", "d", "j"]
    for old, new in (("train_2.jsonl", "others.jsonl"), ("train.tsv", "test_2.tsv")):
        (tmp_path / old).rename(tmp_path / new)
        with pytest.raises(InputError, match="name the files of pairs train and test"):
            text_pairs(str(tmp_path), "train")
        (tmp_path / "others.jsonl").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("p.tsv", "a b\n", "line 1, has 0 tabs"),
        ("p.tsv", "a\tb\n\nc\td\te\n", "line 3, has 2 tabs"),
        ("p.tsv", "a\t \nc\td\n", "empty input or target"),
        ("p.tsv", "\n", "empty"),
        ("p.tsv", "a\tb\n", "one pair"),
        ("p.tsv", "Input\tTarget\n", "empty"),
        ("p.tsv", 'a\t"b"\n"c ""d"" e"\tf\n', "line 2, has a text in quotes that doubles"),
        ("p.jsonl", '{"text": "a"}\n', "no input and target"),
        ("p.jsonl", '{"input": "a", "target": 3}\n', "no input and target"),
        ("p.jsonl", "{\n", "not JSON"),
        ("p.jsonl", '{"input": "\\ud800", "target": "b"}\n', "surrogate"),
        ("p.txt", "a\tb\n", "no file of pairs"),
    ],
)
def test_files_that_hold_no_pairs(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        text_pairs(str(tmp_path / name), "train")


def test_a_missing_file_of_pairs(tmp_path):
    with pytest.raises(InputError, match="no file of pairs"):
        text_pairs(str(tmp_path / "none.tsv"), "train")


@pytest.mark.parametrize("name", ["reverse", "sort"])
def test_generated_pairs(name):
    """Targets are exact, no list is in both splits, and validation reads no test list."""
    train, test = (text_pairs(name, split) for split in ("train", "test"))
    assert not {*train.text} & {*test.text}
    for pairs in (train, test):
        for text, target in zip(pairs.text[:300], pairs.targets):
            words = text.split()
            assert target.split() == (words[::-1] if name == "reverse" else sorted(words))
    held_out = text_pairs(f"{name}:validation", "test")
    assert {*held_out.text} < {*train.text}
    assert not {*held_out.text} & {*text_pairs(f"{name}:validation", "train").text}


def test_classes_as_targets():
    pairs = text_pairs("python", "test")
    assert pairs.targets == [pairs.class_names[i] for i in pairs.labels]
    assert pairs.inputs.labels is pairs.labels


def test_rows_of_pairs_end_and_are_cut():
    docs = Documents(["ab cd"])
    tokenizer = tokenizers.text_to_text(docs, 258)  # Bytes alone.
    pairs = text_pairs("reverse", "test").select(np.arange(2))
    pairs.text[:], pairs.targets[:] = ["abcd", "a"], ["abc", "ab"]
    inputs, targets, whole = pair_rows(tokenizer, pairs, 4, 3)
    ids = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    assert inputs.tolist() == [[*ids("abc"), 1], [*ids("a"), 1, -1, -1]]
    assert targets.tolist() == [[*ids("ab"), 1], [*ids("ab"), 1]]
    assert whole.tolist() == [False, True]


# Evaluations and steps.


def test_same_answers():
    targets = np.array([[5, 6, 1], [5, 1, -1], [1, -1, -1], [5, 6, 1]])
    answers = np.array([[5, 6, -1], [5, -1, -1], [-1, -1, -1], [5, -1, -1]])
    assert same_answers(answers, targets).tolist() == [True, True, True, False]
    assert not same_answers(np.array([[5, 6, 7]]), targets[:1])[0]


def test_filled_text():
    decode_ = lambda ids: "".join(chr(97 + i) for i in ids)
    text = np.array([0, 100, 1, 101, -1])
    shown = filled(
        text, np.array([100, 7, 7, -1]), np.array([100, 2, 3, 101, 4]), [100, 101], decode_
    )
    assert shown == "a⟦hh|cd⟧b⟦|e⟧"


def nll_by_hand(model, params, inputs, targets):
    """The mean of -log p over the targets that are there, one prefix after the other."""
    total, n, logits = 0.0, 0, jax.jit(model.apply)
    for i in range(targets.shape[1]):
        before = np.where(np.arange(targets.shape[1]) < i, targets, -1)
        z = np.asarray(logits(params, inputs, before)[:, i], np.float64)
        logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
        for row, t in zip(logp, targets[:, i]):
            total, n = total - (row[t] if t >= 0 else 0), n + (t >= 0)
    return total / n


@pytest.fixture
def text(tmp_path):
    """A file of text."""
    (tmp_path / "text.txt").write_text("\n".join(documents("python", "test").text)[:20_000])
    return str(tmp_path / "text.txt")


def test_t5_loss(text):
    net = Transformer(1, 2, 16, **T5)
    exp = t5(data=text, net=net, vocabulary=300, share=0.15, length=20, batch_size=4)
    batch, state = begun(exp)
    k = jax.random.key(3)
    metrics = jax.jit(exp.step)(state, batch, k)[1]
    k1, ids = jax.random.split(k)[0], np.arange(100) + 300
    inputs, targets = map(np.asarray, corrupt_spans(k1, batch["tokens"], ids, 1))
    model = EncoderDecoder(net, 400)
    want = nll_by_hand(model, state.params["model"], inputs, targets)
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)


def test_floors_of_held_out_spans(text, one_device):
    """Unigram's -log p and the most frequent token, counted by hand over the tokens left out."""
    net = Transformer(1, 2, 16, **T5)
    exp = t5(data=text, net=net, vocabulary=300, share=0.15, length=40, batch_size=4)
    found = exp.evals["test"](begun(exp)[1])
    read = text_rows(text, 300, 40)
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))[0]
    assert len(read.test) <= 64
    padded = np.resize(read.test, (round_up(len(read.test)), 40))
    targets = np.asarray(corrupt_spans(key, padded, np.arange(100) + 300, 1)[1])
    targets = targets[: len(read.test)]
    tokens = targets[(targets > 1) & (targets < 300)]
    assert len(tokens) == 6 * len(read.test)
    p = (read.counts[:300] + 1) / (read.counts[:300] + 1).sum()
    assert found["unigram"] == pytest.approx(-np.log(p)[tokens].mean(), rel=1e-5)
    assert found["most_frequent"] == pytest.approx(100 * np.mean(tokens == p.argmax()))
    assert found["nll"] > found["unigram"]  # Of random weights.


def test_held_out_spans_are_judged_among_tokens_of_text(text, one_device):
    """A net that mostly expects the end of a span is judged by what it expects otherwise."""
    read, ids = text_rows(text, 300, 40), np.arange(100) + 300
    table = np.random.default_rng(0).normal(0, 3, 400).astype(np.float32)

    def found(ends):
        def predict(state, key, rows):
            targets = corrupt_spans(key, rows, ids, 1)[1]
            logits = state.at[np.array([1, *ids])].add(ends)
            return jnp.broadcast_to(logits, (*targets.shape, 400)), targets

        return span_nll(predict, read, [1, *ids])(jnp.asarray(table))

    key = jax.random.fold_in(jax.random.key(0), 0)
    padded = np.resize(read.test, (round_up(len(read.test)), 40))
    targets = np.asarray(corrupt_spans(key, padded, ids, 1)[1])[: len(read.test)]
    tokens = targets[(targets > 1) & (targets < 300)]
    p = np.exp(table[:300].astype(float)) * (np.arange(300) != 1)
    p /= p.sum()
    for numbers in map(found, (-5.0, 20.0)):
        assert numbers["nll"] == pytest.approx(-np.log(p[tokens]).mean(), rel=1e-5)
        assert numbers["accuracy"] == pytest.approx(100 * np.mean(tokens == p.argmax()))


def test_text_to_text_loss_and_evaluation(tmp_path, one_device):
    """The loss over the targets alone; and a net that has learned them answers all but one that is
    cut."""
    lines = [f"{'ab'[i % 3 // 2]} {'c' * (i % 4)}\t{'yz'[i % 3 // 2]}\n" for i in range(40)]
    lines[30] = "a\tyyyy\n"
    (tmp_path / "p.tsv").write_text("".join(lines))
    net, data = Transformer(1, 2, 16, **T5), str(tmp_path / "p.tsv")
    exp = text_to_text(
        data=data, vocabulary=258, net=net, batch_size=36, length=7, target_length=3, beams=2
    )
    batch, state = begun(exp)
    step = jax.jit(exp.step)
    metrics = step(state, batch, KEY)[1]
    model = EncoderDecoder(net, 358)
    want = nll_by_hand(model, state.params["model"], batch["tokens"], batch["target"])
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
    for i in range(150):  # All pairs in each.
        state, metrics = step(state.replace(step=jnp.array(100)), batch, jax.random.fold_in(KEY, i))
    found = exp.evals["test"](state)
    assert found["exact"] == 75  # Of rows 0, 10, 20 and 30.
    assert found["most_frequent"] == 50
    assert found["nll"] < 1
    assert "answer: z\n  target: z" in exp.evals["text"](state)["answers"]


def test_reversal_is_learned_by_attention_across_alone(tmp_path, monkeypatch, one_device):
    """All held-out words of four letters are reversed. With the memory cut off, the letters can
    only be guessed: log 6 nats each, and none for the end."""
    words = ["".join(x) for x in itertools.product("abcdef", repeat=4)]
    words = [words[i] for i in np.random.default_rng(0).permutation(len(words))]
    (tmp_path / "p.tsv").write_text("".join(f"{x}\t{x[::-1]}\n" for x in words))
    sizes = dict(vocabulary=258, length=5, target_length=5, net=Transformer(1, 2, 32, **T5))

    def learned(steps):
        exp = text_to_text(data=str(tmp_path / "p.tsv"), **sizes, steps=steps, lr=5e-3)
        fed = batches(exp.data, 0, 0, steps, mesh_of(1))
        state, step = jax.jit(exp.init)(KEY, fed[0]), jax.jit(exp.step)
        for i, batch in enumerate(fed):
            state, _ = step(state.replace(step=jnp.array(i)), batch, jax.random.fold_in(KEY, i))
        return exp.evals["test"](state)

    assert learned(250)["exact"] >= 99
    cut = lambda self, x, train=False: jnp.zeros((*x.shape, self.net.width))
    monkeypatch.setattr(EncoderDecoder, "encode", cut)
    found = learned(120)
    assert found["exact"] < 1
    assert found["nll"] == pytest.approx(4 / 5 * np.log(6), abs=0.05)


def test_text_to_text_starts_from_a_run_of_t5(text, tmp_path):
    """With its weights, tokens and net, but for dropout; or with the latter two alone."""
    net = Transformer(1, 2, 8, **T5)
    state = save_run(
        t5, tmp_path / "run", data=text, net=net, length=12, batch_size=4, vocabulary=300
    )
    given = dict(data="python", pretrained=str(tmp_path / "run"), batch_size=4, length=9)
    exp = text_to_text(**given, net=Transformer(3, 3, 9, dropout=0.2), target_length=5)
    assert exp.files["tokenizer.json"] == (tmp_path / "run" / "tokenizer.json").read_text()
    assert json.loads(exp.files["net.json"])["net"]["dropout"] == 0.2
    jax.tree.map(
        np.testing.assert_array_equal,
        exp.warm_start(random_state(exp)).params["model"],
        state.params["model"],
    )
    assert {"tfidf", "bag_of_words", "test", "text"} == {*exp.evals}  # Of a set with classes.
    scratch = text_to_text(**given, target_length=5, scratch=True)
    fresh = random_state(scratch)
    assert scratch.warm_start(fresh) is fresh
    rows = load(tmp_path / "run").batch["tokens"].shape
    assert load(tmp_path / "run").encode(np.ones(rows, np.int32)).shape == (4, 8)
    # Answers to texts of one's own are those of the net, by the run's lengths.
    asked, tokenizer = ["a b <extra_id_0> d", "x " * 40], load_tokenizer(tmp_path / "run")
    model = EncoderDecoder(net, tokenizer.get_vocab_size())
    ids = [tokenizer.encode(x, add_special_tokens=False).ids[:11] for x in asked]
    rows = np.array([[*x, 1, *[-1] * (11 - len(x))] for x in ids])
    for beams, row in (
        (1, decode(model, state.params["model"], KEY, rows, 12)),
        (3, beam_search(model, state.params["model"], rows, 12, 3, 0.6)[0]),
    ):
        texts = [tokenizer.decode(x[x >= 0], skip_special_tokens=False) for x in np.asarray(row)]
        assert answers(tmp_path / "run", asked, beams) == texts
    assert answers(tmp_path / "run", []) == []
    for path, texts, message in (
        (tmp_path / "run", asked[0], "Give a list of texts"),
        (tmp_path / "model.safetensors", asked, "give the folder of the run"),
        (tmp_path / "none", asked, "no run of an encoder and decoder"),
    ):
        with pytest.raises(InputError, match=message):
            answers(path, texts)
    with pytest.raises(InputError, match="at least 1 beam, not 0"):
        answers(tmp_path / "run", asked, beams=0)
    save_run(bert, tmp_path / "bert", net=Transformer(1, 2, 8), length=12, vocabulary=400)
    with pytest.raises(InputError, match="no run of an encoder and decoder.*experiments/t5.py"):
        text_to_text(**given | {"pretrained": str(tmp_path / "bert")})
    with pytest.raises(InputError, match="no run of a language model"):
        finetune_text(pretrained=str(tmp_path / "run"))
    with pytest.raises(InputError, match="leaves none of the"):
        text_to_text(fraction=1e-6)
