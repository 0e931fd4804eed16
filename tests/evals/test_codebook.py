"""Use of codebooks, alone and in groups, and the sentence on those that have collapsed."""

import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.data.sources import Arrays
from ssljax.evals.codebook import codebook_use


def codes(*columns):
    """A set whose images are the codes of a codebook each, and its evaluation."""
    taken = np.stack([np.resize(c, 120) for c in columns], 1).astype(np.uint8)
    return Arrays(taken[:, None, None, :], None)


def test_each_group_has_its_numbers_and_a_collapsed_one_is_named():
    data = codes(np.arange(6), [3], [0, 1, 1, 1])
    use = codebook_use(lambda state, x: x[:, 0, 0], data, 10, batch_size=50, groups=3)
    found = use(None)
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    for number, want in (("perplexity1", 6), ("perplexity2", 1), ("perplexity3", np.exp(entropy))):
        assert found[number] == pytest.approx(want, rel=1e-5)
    assert [found[f"used{i}"] for i in (1, 2, 3)] == [6, 1, 2]
    said = use.warning(found)
    assert said.startswith("Codebooks have collapsed: of 10 entries 1 are taken, with a perplexity")
    assert "; of 10 entries 2 are taken, with a perplexity of 1.75. Usual causes are" in said
    fine = {"perplexity": 2.0, "used": 2}
    assert not codebook_use(lambda state, x: x, data, 10).warning(fine)
    assert codebook_use(lambda state, x: x, data, 1000).warning(fine).startswith("A codebook has")


def test_one_codebook_counts_all_its_codes():
    data = codes(np.arange(6), np.arange(6) + 6)
    use = codebook_use(lambda state, x: jnp.asarray(x[:, 0, 0]), data, 12, batch_size=50)
    assert use(None) == {"perplexity": pytest.approx(12, rel=1e-5), "used": 12}
