"""Similarity and analogies against loops over the words, and their files."""

import math

import numpy as np
import pytest

from ssljax.errors import InputError
from ssljax.evals.words import (
    analogies,
    nearest_words,
    read_pairs,
    read_questions,
    similarity,
    word_tests,
)


def cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def vocabulary_and_vectors(n=40, d=6, seed=0):
    return [f"w{i}" for i in range(n)], np.random.default_rng(seed).normal(size=(n, d))


def test_similarity_equals_spearmans_correlation():
    vocabulary, x = vocabulary_and_vectors()
    rng = np.random.default_rng(1)
    pairs = [
        (f"W{a}", f"w{b}", float(s))
        for a, b, s in zip(*rng.integers(0, 60, (2, 80)), rng.random(80))
    ]
    known = [
        (x[int(a[1:])], x[int(b[1:])], s)
        for a, b, s in pairs
        if int(a[1:]) < 40 and int(b[1:]) < 40
    ]
    cosines, scores = [cosine(a, b) for a, b, _ in known], [s for *_, s in known]
    rank = lambda values: np.array(
        [sum(v < w for v in values) + (sum(v == w for v in values) - 1) / 2 for w in values]
    )
    out = similarity(lambda state: state, vocabulary, pairs)(x)
    np.testing.assert_allclose(
        out["spearman"], np.corrcoef(rank(cosines), rank(scores))[0, 1], rtol=1e-6
    )
    assert out["coverage"] == 100 * len(known) / 80 and 0 < out["coverage"] < 100
    perfect = [
        (a, b, 3 * cosine(x[int(a[1:])], x[int(b[1:])]) + 5)
        for a, b, _ in pairs
        if int(a[1:]) < 40 > int(b[1:])
    ]
    assert similarity(lambda state: state, vocabulary, perfect)(x)["spearman"] == pytest.approx(1)


@pytest.mark.parametrize("restrict", [25, 30_000])
def test_analogies_equal_3cosadd_in_a_loop(restrict):
    vocabulary, x = vocabulary_and_vectors(seed=2)
    rng = np.random.default_rng(3)
    for i in range(0, 24, 4):  # Some that can be solved.
        a, b, c = (v / np.linalg.norm(v) for v in x[i : i + 3])
        x[i + 3] = b - a + c
    quads = [[i, i + 1, i + 2, i + 3] for i in range(0, 24, 4)] + rng.integers(
        0, 60, (60, 4)
    ).tolist()
    questions = [
        (*(f"W{i}" for i in q), ("gram1" if j % 3 else "capitals")) for j, q in enumerate(quads)
    ]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    solved = {"semantic": [], "syntactic": []}
    for j, (a, b, c, d) in enumerate(quads):
        if max(a, b, c, d) < min(restrict, 40):
            best = max(
                (i for i in range(min(restrict, 40)) if i not in (a, b, c)),
                key=lambda i: cosine(x[i], x[b]) - cosine(x[i], x[a]) + cosine(x[i], x[c]),
            )
            solved["syntactic" if j % 3 else "semantic"].append(best == d)
    out = analogies(lambda state: state, vocabulary, questions, restrict)(x)
    both = solved["semantic"] + solved["syntactic"]
    assert out["accuracy"] == pytest.approx(100 * np.mean(both)) and 0 < out["accuracy"] < 100
    for kind, hits in solved.items():
        assert out[kind] == pytest.approx(100 * np.mean(hits))
    assert out["coverage"] == pytest.approx(100 * len(both) / len(quads))


def test_nearest_words_table():
    x = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 2.0], [-1, 0.0]])
    words = ["day", "night", "sea", "ocean", "stone"]
    table = nearest_words(lambda state: state, words, ["day", "ocean", "unheard"], 2)(x)["words"]
    lines = table.splitlines()
    assert (
        len(lines) == 2
        and lines[0].startswith("day    night 0.99, ")
        and lines[1].startswith("ocean  sea 1.00, ")
    )


def test_word_tests_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    vocabulary, x = vocabulary_and_vectors()
    assert word_tests(lambda s: s, vocabulary, wordsim="", questions="") == {}
    assert "Note: wordsim is left out, since there is no" in capsys.readouterr().out
    with pytest.raises(InputError, match="There is no file none.tsv: check --wordsim"):
        word_tests(lambda s: s, vocabulary, wordsim="none.tsv")
    (tmp_path / "files").mkdir()
    pairs = tmp_path / "files" / "wordsim353.tsv"
    pairs.write_text("# a b\n" + "".join(f"w{i}\tw{i + 1}\t{i}\n" for i in range(30)))
    assert read_pairs(pairs)[3] == ("w3", "w4", 3.0)
    made = word_tests(lambda s: s, vocabulary, wordsim="")
    assert made["wordsim"](x)["coverage"] == 100
    assert word_tests(lambda s: s, vocabulary[:10], wordsim="") == {}
    assert "has the words of 9 of its 30 cases" in capsys.readouterr().out
    pairs.write_text("one two 3\n")
    with pytest.raises(
        InputError, match="must have two words and a number on each line, with tabs between"
    ):
        read_pairs(pairs)
    questions = tmp_path / "questions"
    questions.write_text(": family\nboy girl son daughter\n\n: gram1-x\nA b C d\n")
    assert read_questions(questions) == [
        ("boy", "girl", "son", "daughter", "family"),
        ("A", "b", "C", "d", "gram1-x"),
    ]
    questions.write_text(": x\n" + "".join(f"w{i} w{i + 1} w{i + 2} w{i + 3}\n" for i in range(30)))
    monkeypatch.setattr(
        "ssljax.evals.words.RESTRICT", 22
    )  # Nineteen of the thirty are of these words alone.
    pairs.unlink()
    assert word_tests(lambda s: s, vocabulary, questions=str(questions)) == {}
    assert "has the words of 19 of its 30 cases" in capsys.readouterr().out
    monkeypatch.setattr("ssljax.evals.words.RESTRICT", 23)
    assert "questions" in word_tests(lambda s: s, vocabulary, questions=str(questions))
    questions.write_text("a b c\n")
    with pytest.raises(InputError, match="must have four words on each line"):
        read_questions(questions)
