"""Dense VAE of 28x28 pixels with 512 hidden units and 16 latents, 128 images in a step, Adam."""

PEER = "pythae"
UNIT = "images"
PER_STEP = BATCH = 128


def ours(folder):
    from experiments.vae import vae
    from ssljax.data import Images
    from ssljax.models.coder import Dense
    from tests.benchmarks.peers.program import stepper

    exp = vae(Images("doodles"), Dense((512,)), latents=16, pixels="grey", batch_size=BATCH)
    return stepper(exp)


def theirs(folder):
    import logging

    logging.disable(logging.WARNING)  # On packages that it can do without.
    from pythae.data.datasets import DatasetOutput
    from pythae.models import VAE, VAEConfig
    import torch

    model = VAE(VAEConfig((1, 28, 28), latent_dim=16, reconstruction_loss="bce"))
    tx = torch.optim.Adam(model.parameters(), 1e-3)
    images = torch.rand(8000, 1, 28, 28)

    def run(steps):
        for _ in range(steps):
            batch = DatasetOutput(data=images[torch.randint(len(images), (BATCH,))])
            model(batch).loss.backward()
            tx.step()
            tx.zero_grad(set_to_none=True)

    return run
