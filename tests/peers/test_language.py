"""Language objectives, masking and sampling against transformers and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses.cpc import cpc_loss
from ssljax.losses.language import (
    mask_tokens,
    masked_lm_loss,
    next_token_loss,
    replaced_detection_loss,
)
from ssljax.losses.softmax import output_cross_entropy
from ssljax.models.transformer import sampling_mask
from tests.peers.torch_side import agree_with_gradients, tensor


def test_masked_lm(row):
    """Masked language modelling, value and gradients

    PyTorch's cross-entropy over the labels that are not -100, as in `BertForMaskedLM`.
    """
    functional = row.peer("torch.nn.functional")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 9, 40)).astype(np.float32)
    targets = rng.integers(0, 40, (6, 9))
    weight = rng.random((6, 9)) < 0.6
    labels = tensor(np.where(weight, targets, -100).ravel())
    theirs = lambda y: functional.cross_entropy(y.reshape(-1, 40), labels)
    ours = lambda y: masked_lm_loss(y, jnp.asarray(targets), jnp.asarray(weight, jnp.float32))
    agree_with_gradients(row, 1e-5, ours, theirs, logits)


def test_next_token(row):
    """Next-token loss, value and gradients

    transformers' `ForCausalLMLoss`.
    """
    module = row.peer("transformers.loss.loss_utils")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 9, 40)).astype(np.float32)
    tokens = rng.integers(0, 40, (6, 9))
    theirs = lambda y: module.ForCausalLMLoss(y.double(), tensor(tokens), 40)
    ours = lambda y: next_token_loss(y[:, :-1], jnp.asarray(tokens))
    agree_with_gradients(row, 1e-5, ours, theirs, logits)


def test_output_cross_entropy(row):
    """Cross-entropy through the output layer, value and gradients

    `linear` and `cross_entropy` in PyTorch; ours has a gradient of its own.
    """
    functional = row.peer("torch.nn.functional")
    rng = np.random.default_rng(0)
    h, w, b = (rng.normal(size=s).astype(np.float32) for s in ((30, 16), (16, 100), (100,)))
    y = rng.integers(0, 100, 30)
    theirs = lambda h, w, b: functional.cross_entropy(h @ w + b, tensor(y))
    ours = lambda h, w, b: output_cross_entropy(h, w, b, jnp.asarray(y)).mean()
    agree_with_gradients(row, 1e-5, ours, theirs, h, w, b)


def test_electra(row):
    """ELECTRA's discriminator loss, value and gradients

    PyTorch's `binary_cross_entropy_with_logits`, as in `ElectraForPreTraining`.
    """
    functional = row.peer("torch.nn.functional")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 33)).astype(np.float32)
    replaced = rng.random((8, 33)) < 0.15
    theirs = lambda y: functional.binary_cross_entropy_with_logits(y, tensor(replaced).double())
    ours = lambda y: replaced_detection_loss(y, jnp.asarray(replaced))
    agree_with_gradients(row, 1e-5, ours, theirs, logits)


def test_cpc(row):
    """CPC, value and gradients

    Equation 4 step by step in PyTorch.
    """
    functional = row.peer("torch.nn.functional")
    rng = np.random.default_rng(0)
    n, time, steps = 6, 9, 4
    shapes = (n, time, 5), (n, time, 7), (steps, 5, 7)
    arrays = [rng.normal(size=s).astype(np.float32) for s in shapes]

    def theirs(c, z, w):
        found = []
        for k in range(1, steps + 1):
            for t in range(time - k):
                logits = (c[:, t] @ w[k - 1]) @ z[:, t + k].T
                found += [functional.cross_entropy(logits, tensor(np.arange(n)))]
        return sum(found) / len(found)

    agree_with_gradients(row, 1e-5, lambda *a: cpc_loss(*a)[0], theirs, *arrays)


def test_token_masking(row):
    """BERT's fates of chosen tokens

    Share of [MASK] and of other tokens among the chosen: transformers'
    `DataCollatorForLanguageModeling` on the same 51,200 tokens. The collator chooses each token
    with probability 0.15, ours (as BERT) the same number in every row; by chance, not exactly.
    """
    torch = row.peer("torch")
    collator, tokenizer = language_collator(row)
    torch.manual_seed(0)
    tokens = np.random.default_rng(0).integers(5, 30, (400, 128))
    inputs, labels = collator.torch_mask_tokens(
        tensor(tokens), special_tokens_mask=torch.zeros(400, 128)
    )
    chosen = (labels != -100).numpy()
    theirs = fates(tokens, inputs.numpy(), chosen, tokenizer.mask_token_id)
    found = mask_tokens(jax.random.key(0), jnp.asarray(tokens), 30, 4, 5, share=0.15)
    at = np.zeros(tokens.shape, bool)
    np.put_along_axis(at, np.asarray(found.at), np.asarray(found.weight) > 0, axis=1)
    ours = fates(tokens, np.asarray(found.tokens), at, 4)
    row.agree(ours, theirs, 0.02)


def language_collator(row):
    transformers = row.peer("transformers")
    tokenizers = row.peer("tokenizers")
    special = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
    words = {w: i for i, w in enumerate([*special, *(f"w{i}" for i in range(25))])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    del row.peers["tokenizers"]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, mask_token="[MASK]", pad_token="[PAD]", unk_token="[UNK]"
    )
    return transformers.DataCollatorForLanguageModeling(tokenizer), tokenizer


def fates(tokens: np.ndarray, new: np.ndarray, chosen: np.ndarray, mask: int) -> np.ndarray:
    """Shares of all tokens that are chosen, and of the chosen that are masked and that are not."""
    masked = (new == mask)[chosen].mean()
    return np.array([chosen.mean(), masked, 1 - masked])


def bert_whole_words(rng, words: list[list[int]], budget: int) -> int:
    """How many tokens BERT's script chooses: words at random, except those that don't fit."""
    chosen = 0
    for i in rng.permutation(len(words)):
        if chosen + len(words[i]) <= budget:
            chosen += len(words[i])
    return chosen


@pytest.mark.parametrize("ordinary_starts", [12, 7], ids=["half start", "a quarter starts"])
def test_whole_words(row, ordinary_starts):
    """Whole-word masking, mean number of chosen tokens

    BERT's procedure (skip a word that doesn't fit, take later ones that do) in NumPy: rows of 32
    tokens of which a half or three quarters continue a word. By chance, over 4,000 rows.
    """
    row.peer("numpy")
    rng = np.random.default_rng(0)
    n, t = 4000, 32
    tokens = rng.integers(5, 30, (n, t))
    starts = np.arange(30) < 5 + ordinary_starts
    found = mask_tokens(
        jax.random.key(0), jnp.asarray(tokens), 30, 4, 5, share=0.15, starts=jnp.asarray(starts)
    )
    expected = []
    for tokens_of_row in tokens:
        word = np.cumsum(starts[tokens_of_row] | (np.arange(t) == 0))
        words = [list(np.flatnonzero(word == i)) for i in range(1, word[-1] + 1)]
        expected.append(bert_whole_words(rng, words, round(0.15 * t)))
    row.agree(np.asarray(found.weight).sum(1).mean(), np.mean(expected), 0.02)


def test_sampling(row):
    """Top-k and nucleus sampling, which tokens may be drawn

    transformers' `TopKLogitsWarper` and `TopPLogitsWarper`, one after the other.
    """
    process = row.peer("transformers.generation.logits_process")
    torch = row.peer("torch")
    logits = 3 * np.random.default_rng(0).normal(size=(50, 80)).astype(np.float32)
    for k, p in [(5, 1.0), (0, 0.9), (20, 0.7), (0, 0.1)]:
        scores = tensor(logits)
        if k:
            scores = process.TopKLogitsWarper(k)(None, scores)
        if p < 1:
            scores = process.TopPLogitsWarper(p)(None, scores)
        theirs = torch.isfinite(scores).numpy()
        row.agree(np.asarray(sampling_mask(jnp.asarray(logits), k, p)), theirs, 0)
