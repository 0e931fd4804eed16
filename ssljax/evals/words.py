"""Vectors of words against what people say of words: likeness, analogies, and neighbours to read."""

from collections.abc import Callable, Mapping, Sequence
import os
import pathlib
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from ssljax.errors import InputError
from ssljax.losses.infonce import normalize

Tree = Any
Vectors = Callable[[Tree], Any]  # state -> (words, d), a row for each of the vocabulary's.
RESTRICT = 30_000  # The most frequent words are what answers of analogies are looked for in.
LEAST = 20  # Pairs or questions; a number from fewer says nothing.


def word_tests(
    vectors: Vectors,
    vocabulary: Sequence[str],
    wordsim: str = "",
    simlex: str = "",
    questions: str = "",
) -> dict[str, Callable[[Tree], Mapping[str, float]]]:
    """The evaluators of WordSim-353, SimLex-999 and the analogies of questions-words.txt, where these are there.

    A file that is not given is looked for in files/ where TFDS keeps its data; a note says what is left out. InputError
    where a given one is missing or of another form.
    """
    data = (
        pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
        / "files"
    )
    files = {
        "wordsim": (wordsim, "wordsim353.tsv"),
        "simlex": (simlex, "simlex999.txt"),
        "questions": (questions, "questions-words.txt"),
    }
    made = {}
    for name, (given, usual) in files.items():
        path = pathlib.Path(given).expanduser() if given else data / usual
        if not path.is_file():
            if given:
                raise InputError(f"There is no file {given}: check --{name}.")
            print(f"Note: {name} is left out, since there is no {path}: give it as --{name}.")
            continue
        cases = read_questions(path) if name == "questions" else read_pairs(path)
        known = set(vocabulary[:RESTRICT] if name == "questions" else vocabulary)
        lower = [[w.lower() for w in case[:-1]] for case in cases]
        if (covered := sum(known.issuperset(case) for case in lower)) < LEAST:
            print(
                f"Note: {name} is left out: the vocabulary has the words of {covered} of its {len(cases)} cases."
            )
        else:
            made[name] = (analogies if name == "questions" else similarity)(
                vectors, vocabulary, cases
            )
    return made


def read_pairs(path: pathlib.Path) -> list[tuple[str, str, float]]:
    """Two words and their likeness a line, with tabs between; lines that begin with # are skipped."""
    rows = [
        line.split("\t")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line and line[0] != "#"
    ]
    try:
        return [(a, b, float(score)) for a, b, score in rows]
    except ValueError:
        raise InputError(
            f"{path} must have two words and a number on each line, with tabs between."
        ) from None


def read_questions(path: pathlib.Path) -> list[tuple[str, str, str, str, str]]:
    """Four words of `a b c d` (a is to b as c is to d), and the section, which a line with a colon opens."""
    section, found = "", []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(":"):
            section = line[1:].strip()
        elif line.strip():
            found.append((*line.split(), section))
    if not found or any(len(q) != 5 for q in found):
        raise InputError(
            f"{path} must have four words on each line, and a line `: section` before them."
        )
    return found


def similarity(
    vectors: Vectors,
    vocabulary: Sequence[str],
    pairs: Sequence[tuple[str, str, float]],
) -> Callable[[Tree], Mapping[str, float]]:
    """Spearman's correlation of cosines with people's scores, of the pairs in the vocabulary: `coverage` percent."""
    row = {w: i for i, w in enumerate(vocabulary)}
    known = [
        (row[a], row[b], score)
        for a, b, score in ((a.lower(), b.lower(), s) for a, b, s in pairs)
        if a in row and b in row
    ]
    left, right, score = map(np.array, zip(*known))

    def evaluate(state: Tree) -> Mapping[str, float]:
        x = unit(vectors(state))
        return {
            "spearman": float(spearmanr(np.sum(x[left] * x[right], -1), score).statistic),
            "coverage": 100 * len(known) / len(pairs),
        }

    return evaluate


def analogies(
    vectors: Vectors,
    vocabulary: Sequence[str],
    questions: Sequence[tuple[str, str, str, str, str]],
    restrict: int = RESTRICT,
) -> Callable[[Tree], Mapping[str, float]]:
    """Percent of analogies solved by 3CosAdd: the word nearest to b - a + c, but for these, among the first `restrict`.

    Mikolov et al., 2013, arXiv:1301.3781, section 4. Questions with other words are left out: `coverage` is the percent
    that remain. Vocabularies are ordered by frequency. `syntactic` are the sections gram..., `semantic` the others.
    """
    row = {w: i for i, w in enumerate(vocabulary[:restrict])}
    lower = [([w.lower() for w in q[:4]], q[4]) for q in questions]
    known = [
        ([row[w] for w in q], section.startswith("gram"))
        for q, section in lower
        if row.keys() >= set(q)
    ]
    at, syntactic = np.array([q for q, _ in known]), np.array([s for _, s in known])

    def evaluate(state: Tree) -> Mapping[str, float]:
        x = unit(vectors(state))[:restrict]
        solved = []
        for a, b, c, d in (part.T for part in np.array_split(at, -(-len(at) // 512))):
            cosines = (x[b] - x[a] + x[c]) @ x.T
            for asked in (a, b, c):
                cosines[np.arange(len(a)), asked] = -np.inf
            solved.append(cosines.argmax(-1) == d)
        solved = np.concatenate(solved)
        kinds = {"semantic": ~syntactic, "syntactic": syntactic}
        return {"accuracy": 100 * solved.mean(), "coverage": 100 * len(known) / len(questions)} | {
            kind: 100 * solved[these].mean() for kind, these in kinds.items() if these.any()
        }

    return evaluate


def nearest(
    vectors: Vectors,
    vocabulary: Sequence[str],
    queries: Sequence[str] = (),
    k: int = 8,
) -> Callable[[Tree], Mapping[str, str]]:
    """A table of the `k` words nearest to each of `queries` by cosine, by default of 16 between common and rare."""
    ranks = np.unique(
        np.geomspace(min(50, len(vocabulary) - 1), len(vocabulary) - 1, 24).astype(int)
    )[:16]
    at = [vocabulary.index(w) for w in queries if w in vocabulary] or list(ranks)

    def evaluate(state: Tree) -> Mapping[str, str]:
        x = unit(vectors(state))
        cosines = x[at] @ x.T
        cosines[np.arange(len(at)), at] = -np.inf
        best = np.argsort(-cosines, -1)[:, :k]
        width = max(len(vocabulary[i]) for i in at)
        return {
            "words": "\n".join(
                f"{vocabulary[i]:{width}}  "
                + ", ".join(f"{vocabulary[j]} {cosines[r, j]:.2f}" for j in best[r])
                for r, i in enumerate(at)
            )
        }

    return evaluate


def unit(x: Any) -> np.ndarray:
    """Rows at length 1, float32."""
    return np.asarray(normalize(np.asarray(x, np.float32)))
