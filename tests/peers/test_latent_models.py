"""Latent-variable models and codebooks against pythae, vector-quantize-pytorch and PyTorch."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.losses.elbo import dreg_bound, iwae_bound, kl_normal, log_normal
from ssljax.losses.quantization import codebook, commitment_loss, nearest_code, update_codebook
from ssljax.losses.reconstruction import cross_entropy, squared_error
from tests.peers.torch_side import agree_with_gradients, tensor


def posterior(seed: int, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(n, d)).astype(np.float32)


def pythae_options(kind: str, samples: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        model_config=SimpleNamespace(reconstruction_loss=kind), n_samples=samples
    )


def test_kl(row):
    """KL of a Gaussian posterior, value and gradients

    `torch.distributions.kl_divergence`.
    """
    d = row.peer("torch.distributions")
    for seed in range(3):
        theirs = lambda m, s: d.kl_divergence(d.Normal(m, (s / 2).exp()), d.Normal(0.0, 1.0)).sum()
        ours = lambda m, s: kl_normal(m, s).sum()
        agree_with_gradients(row, 1e-5, ours, theirs, *posterior(seed, 16, 8))


def test_log_normal(row):
    """Gaussian log-density, value and gradients

    `torch.distributions.Normal.log_prob`.
    """
    d = row.peer("torch.distributions")
    z = posterior(9, 16, 8)[0]
    for seed in range(3):
        theirs = lambda z, m, s: d.Normal(m, (s / 2).exp()).log_prob(z).sum()
        ours = lambda z, m, s: log_normal(z, m, s).sum()
        agree_with_gradients(row, 1e-5, ours, theirs, z, *posterior(seed, 16, 8))


def test_vae(row):
    """VAE's loss, value and gradients

    pythae's `VAE.loss_function`, with cross-entropy and with squared error, which it halves.
    """
    vae = row.peer("pythae.models").VAE
    torch = row.peer("torch")
    x = np.random.default_rng(0).random((16, 6, 5)).astype(np.float32)
    for seed in range(3):
        logits = np.random.default_rng(seed).normal(size=(16, 6, 5)).astype(np.float32)

        def theirs(kind, activation):
            def loss(y, m, s):
                return vae.loss_function(
                    pythae_options(kind), activation(y), tensor(x), m, s, None
                )[0]

            return loss

        kl = lambda m, s: kl_normal(m, s).sum(1)
        cross = lambda y, m, s: jnp.mean(cross_entropy(x, y) + kl(m, s))
        square = lambda y, m, s: jnp.mean(squared_error(x, y) / 2 + kl(m, s))
        arrays = logits, *posterior(seed, 16, 8)
        agree_with_gradients(row, 1e-5, cross, theirs("bce", torch.sigmoid), *arrays)
        agree_with_gradients(row, 1e-5, square, theirs("mse", lambda y: y), *arrays)


def log_weights(x, logits, mean, log_var, z):
    """log p(x, z) - log q(z|x), (k, n), of k draws z (k, n, d)."""
    return -cross_entropy(x, logits) + (log_normal(z) - log_normal(z, mean, log_var)).sum(-1)


def test_iwae_gradient(row):
    """IWAE's gradient

    That of pythae's `IWAE.loss_function`, by the decoder's logits and the posterior.
    """
    iwae = row.peer("pythae.models").IWAE
    rng = np.random.default_rng(0)
    k, n, d, pixels = 7, 12, 5, 20
    x = (rng.random((n, pixels)) < 0.5).astype(np.float32)
    z = rng.normal(size=(k, n, d)).astype(np.float32)
    logits = rng.normal(size=(k, n, pixels)).astype(np.float32)

    def theirs(logits, mean, log_var):
        wide = lambda a: a[:, None].expand(n, k, d)
        found = iwae.loss_function(
            pythae_options("bce", k),
            logits.sigmoid().transpose(0, 1),
            tensor(x),
            wide(mean),
            wide(log_var),
            tensor(z).transpose(0, 1),
        )[0]
        return found - found.detach()  # The value is not the bound: only gradients are compared.

    def ours(logits, mean, log_var):
        found = -iwae_bound(log_weights(x, logits, mean, log_var, z)).mean()
        return found - jax.lax.stop_gradient(found)

    agree_with_gradients(row, 1e-5, ours, theirs, logits, *posterior(0, n, d))


def test_iwae_bound(row):
    """IWAE's bound, value and gradients

    logsumexp of `torch.distributions`' log-densities.
    """
    d = row.peer("torch.distributions")
    functional = row.peer("torch.nn.functional")
    rng = np.random.default_rng(1)
    k, n, pixels = 50, 12, 20
    x = (rng.random((n, pixels)) < 0.5).astype(np.float32)
    z = rng.normal(size=(k, n, 5)).astype(np.float32)
    logits = rng.normal(size=(k, n, pixels)).astype(np.float32)

    def theirs(logits, mean, log_var):
        target = tensor(x).expand(k, n, pixels)
        log_p = -functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        prior = d.Normal(0.0, 1.0).log_prob(tensor(z))
        log_q = d.Normal(mean, (log_var / 2).exp()).log_prob(tensor(z))
        log_w = log_p.sum(-1) + (prior - log_q).sum(-1)
        return (log_w.logsumexp(0) - math.log(k)).mean()

    ours = lambda *a: iwae_bound(log_weights(x, *a, z)).mean()
    agree_with_gradients(row, 1e-5, ours, theirs, logits, *posterior(1, n, 5))


def test_dreg(row):
    """DReG's gradient by the posterior

    Σ w² ∂log w/∂z ∂z/∂φ (Tucker et al., equation 8) in PyTorch.
    """
    torch = row.peer("torch")
    k, n, d = 9, 12, 5
    mean, log_var = posterior(2, n, d)
    noise = np.random.default_rng(3).normal(size=(k, n, d)).astype(np.float32)
    a = np.random.default_rng(4).normal(size=(d,)).astype(np.float32)

    def theirs(mean, log_var):
        normal = torch.distributions.Normal
        z = mean + (log_var / 2).exp() * tensor(noise)
        q = normal(mean.detach(), (log_var.detach() / 2).exp())
        log_w = normal(z * tensor(a), 1.0).log_prob(torch.ones_like(z)).sum(-1)
        log_w = log_w + (normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).sum(-1)
        w = log_w.detach().softmax(0)
        found = (w**2 * log_w).sum(0).mean()
        return (log_w.logsumexp(0) - math.log(k)).mean().detach() + found - found.detach()

    def ours(mean, log_var):
        m, s = jax.lax.stop_gradient((mean, log_var))

        def log_w(z):
            return (log_normal(1.0, a * z) + log_normal(z) - log_normal(z, m, s)).sum(-1)

        return dreg_bound(log_w, mean + jnp.exp(log_var / 2) * noise).mean()

    agree_with_gradients(row, 1e-5, ours, theirs, mean, log_var)


def test_vq_codes(row):
    """VQ-VAE's codes, the numbers themselves

    `VectorQuantize` with the same codebook.
    """
    vq = row.peer("vector_quantize_pytorch", "vector-quantize-pytorch")
    for seed, (size, d) in enumerate([(8, 4), (64, 16), (512, 32)]):
        rng = np.random.default_rng(seed)
        book = rng.normal(size=(size, d)).astype(np.float32)
        z = rng.normal(size=(5, 40, d)).astype(np.float32)
        module = vq.VectorQuantize(dim=d, codebook_size=size).eval()
        module._codebook.embed.copy_(tensor(book)[None])
        row.agree(nearest_code(z, book), module(tensor(z).float())[1], 0)


def test_vq_codebook(row):
    """VQ-VAE's codebook after a step

    `VectorQuantize`'s moving averages with its smoothing of the counts, 1e-5, at 1e-20: ours has
    none, as in equations 6 to 8.
    """
    vq = row.peer("vector_quantize_pytorch", "vector-quantize-pytorch")
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(16, 8)).astype(np.float32)
    z = rng.normal(size=(200, 8)).astype(np.float32)
    module = vq.VectorQuantize(
        dim=8, codebook_size=16, decay=0.9, eps=1e-20, threshold_ema_dead_code=0
    )
    inner = module._codebook
    inner.embed.copy_(tensor(vectors)[None])
    inner.embed_avg.copy_(tensor(vectors)[None])
    inner.cluster_size.fill_(1.0)
    module.train()
    module(tensor(z).float()[None])
    book = update_codebook(
        codebook(jnp.asarray(vectors)), z, nearest_code(z, vectors), jax.random.key(0), 0.9, 0.0
    )
    row.agree(book["vectors"], inner.embed[0].detach(), 1e-5)


def test_vq_commitment(row):
    """VQ-VAE's commitment loss

    Equation 3 sums over the d dimensions of a vector, as ours does; `VectorQuantize` and pythae
    take the mean, so that their β is d times ours. Converted: times d.
    """
    vq = row.peer("vector_quantize_pytorch", "vector-quantize-pytorch")
    rng = np.random.default_rng(0)
    book = rng.normal(size=(32, 16)).astype(np.float32)
    z = rng.normal(size=(1, 50, 16)).astype(np.float32)
    module = vq.VectorQuantize(dim=16, codebook_size=32, commitment_weight=1.0, ema_update=False)
    module._codebook.embed.copy_(tensor(book)[None])
    module.train()
    theirs = module(tensor(z).float())[2].item()
    ours = commitment_loss(z, book[nearest_code(z, book)])
    row.agree(ours, 16 * theirs, 1e-5)
    row.differ(ours, theirs, 14.0)
