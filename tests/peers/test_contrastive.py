"""Contrastive losses against lightly, PyTorch Metric Learning, transformers and PyTorch."""

import jax
import numpy as np
import pytest

from ssljax.losses.infonce import (
    clip_loss,
    enqueue,
    info_nce_loss,
    nearest_neighbour,
    nt_xent_loss,
    supcon_loss,
)
from tests.peers.torch_side import agree_with_gradients, tensor

SIZES = [(4, 8, 0.5), (33, 16, 0.1), (64, 128, 0.07)]


def views(seed: int, count: int, n: int, d: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, d)).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("tiled", [False, True], ids=["dense", "tiled"])
def test_nt_xent_lightly(row, tiled):
    """NT-Xent, value and gradients

    lightly's `NTXentLoss`; ours as one matrix and in tiles.
    """
    loss = row.peer("lightly.loss")
    for seed, (n, d, tau) in enumerate(SIZES):
        theirs = loss.NTXentLoss(temperature=tau)
        ours = lambda a, b, tau=tau: nt_xent_loss(a, b, tau, tiled=tiled)
        agree_with_gradients(row, 1e-5, ours, theirs, *views(seed, 2, n, d))


def test_nt_xent_metric_learning(row):
    """NT-Xent, value and gradients

    `SelfSupervisedLoss(NTXentLoss)`.
    """
    losses = row.peer("pytorch_metric_learning.losses")
    for seed, (n, d, tau) in enumerate(SIZES):
        theirs = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=tau))
        ours = lambda a, b, tau=tau: nt_xent_loss(a, b, tau)
        agree_with_gradients(row, 1e-5, ours, theirs, *views(seed, 2, n, d))


def test_info_nce_queue(row):
    """InfoNCE against a queue (MoCo), value and gradients

    lightly's `NTXentLoss` with a memory bank.
    """
    loss = row.peer("lightly.loss")
    for seed, (n, d, tau) in enumerate(SIZES):
        q, k = views(seed, 2, n, d)
        queue = views(seed + 10, 1, 4 * n, d)[0]
        queue /= np.linalg.norm(queue, axis=1, keepdims=True)
        theirs = loss.NTXentLoss(temperature=tau, memory_bank_size=(4 * n, d))
        theirs.memory_bank.bank = tensor(queue)
        ours = lambda q, tau=tau, k=k, queue=queue: info_nce_loss(q, k, queue, tau)
        agree_with_gradients(row, 1e-5, ours, lambda q, k=k: theirs(q, tensor(k)), q)


def test_queue(row):
    """Queue after seven batches

    The rows of lightly's memory bank; ours has the newest first, lightly's a moving pointer.
    """
    modules = row.peer("lightly.models.modules.memory_bank")
    n, d, m = 8, 5, 40
    bank = modules.MemoryBankModule(size=(m, d))
    queue = np.zeros((m, d), np.float32)
    for seed in range(7):
        rows = views(seed, 1, n, d)[0]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        queue = enqueue(queue, rows)
        bank(tensor(rows).float(), update=True)
    ours, theirs = np.asarray(queue), bank.bank.numpy()
    order = lambda x: x[np.argsort(x[:, 0])]
    row.agree(order(ours), order(theirs), 1e-6)


def test_clip(row):
    """CLIP, value and gradients, that of the temperature too

    transformers' `image_text_contrastive_loss` on exp(t) times the cosines.
    """
    clip = row.peer("transformers.models.clip.modeling_clip")
    functional = row.peer("torch.nn.functional")
    for seed, (n, d, _) in enumerate(SIZES):

        def theirs(a, b, t):
            a, b = functional.normalize(a, dim=1), functional.normalize(b, dim=1)
            return clip.image_text_contrastive_loss(t.exp() * a @ b.T)

        ours = lambda a, b, t: clip_loss(a, b, jax.numpy.exp(-t))
        t = np.float32(np.log(1 / 0.07))
        agree_with_gradients(row, 1e-5, ours, theirs, *views(seed, 2, n, d), t)


def test_moco_v3(row):
    """InfoNCE among the batch's keys (MoCo v3), value and gradients

    Cross-entropy of q kᵀ/τ in PyTorch; MoCo v3's code multiplies it by 2τ.
    """
    functional = row.peer("torch.nn.functional")
    for seed, (n, d, tau) in enumerate(SIZES):
        q, k = views(seed, 2, n, d)

        def theirs(q, k=k, tau=tau):
            q, k = functional.normalize(q, dim=1), functional.normalize(tensor(k), dim=1)
            return functional.cross_entropy(q @ k.T / tau, tensor(np.arange(len(q))))

        ours = lambda q, tau=tau, k=k: info_nce_loss(q, k, tau=tau)
        agree_with_gradients(row, 1e-5, ours, theirs, q)


@pytest.mark.parametrize("tiled", [False, True], ids=["dense", "tiled"])
def test_supcon(row, tiled):
    """SupCon, value and gradients

    `SupConLoss`; ours as one matrix and in tiles.
    """
    losses = row.peer("pytorch_metric_learning.losses")
    for seed, (n, d, tau) in enumerate(SIZES):
        labels = np.random.default_rng(seed).integers(0, 3, n)
        labels = jax.numpy.asarray(np.tile(labels, 2))
        theirs = losses.SupConLoss(temperature=tau)
        ours = lambda z, tau=tau, labels=labels: supcon_loss(z, labels, tau, tiled=tiled)
        z = np.concatenate(views(seed, 2, n, d))
        agree_with_gradients(row, 1e-5, ours, lambda z, labels=labels: theirs(z, tensor(labels)), z)


def test_supcon_authors_factor(row):
    """SupCon's factor

    The authors' code multiplies equation 2 by τ/0.07, 1.43 at τ = 0.1; ours is the equation, so
    that their learning rate 0.5 for CIFAR-10 is 0.714 here. Checked by their formula in float64.
    """
    torch = row.peer("torch")
    tau, base = 0.1, 0.07
    z = np.concatenate(views(0, 2, 24, 16))
    labels = np.tile(np.random.default_rng(0).integers(0, 4, 24), 2)

    def theirs(z):
        z = torch.nn.functional.normalize(z, dim=1)
        itself = torch.eye(len(z), dtype=torch.bool)
        logits = (z @ z.T / tau).masked_fill(itself, -torch.inf)
        log_p = logits - torch.logsumexp(logits, 1, keepdim=True)
        same = (tensor(labels)[:, None] == tensor(labels)) & ~itself
        per_view = log_p.masked_fill(~same, 0).sum(1) / same.sum(1)
        return -(tau / base) * per_view.mean()

    agree_with_gradients(row, 1e-5, lambda z: tau / base * supcon_loss(z, labels, tau), theirs, z)
    row.differ(supcon_loss(z, labels, tau), theirs(tensor(z)), 0.2)


def test_nearest_neighbour(row):
    """NNCLR's nearest neighbours, the rows themselves

    lightly's `NNMemoryBankModule`.
    """
    modules = row.peer("lightly.models.modules.nn_memory_bank")
    for seed, (n, d, _) in enumerate(SIZES):
        z, support = views(seed, 1, n, d)[0], views(seed + 10, 1, 8 * n, d)[0]
        bank = modules.NNMemoryBankModule(size=(8 * n, d))
        bank.bank = tensor(support).float()
        theirs = bank(tensor(z).float(), update=False)
        row.agree(nearest_neighbour(z, support), theirs, 0)
