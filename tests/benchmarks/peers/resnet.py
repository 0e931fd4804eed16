"""SimCLR's step with ResNet-18 for 32x32 pixels on 128 views that are ready, and PyTorch's."""

PEER = "torchvision, its default layout"
UNIT = "images"
PER_STEP = BATCH = 64


def ours(folder):
    import jax
    import numpy as np
    import optax

    from ssljax import Experiment, minimize, TrainState
    from ssljax.data import feed
    from ssljax.data.sources import Arrays
    from ssljax.losses.infonce import nt_xent_loss
    from ssljax.models.encoder import Chain
    from ssljax.models.mlp import MLP
    from ssljax.models.resnet import ResNet
    from tests.benchmarks.peers.program import stepper

    net = Chain(encoder=ResNet(18), head=MLP((512, 128)))
    tx = optax.sgd(0.03, 0.9)
    # Both views of an image lie in one array, one above the other.
    pixels = np.random.default_rng(0).integers(256, size=(8 * BATCH, 64, 32, 3), dtype=np.uint8)

    def views(batch):
        return (batch["image"] / 255.0).reshape(-1, 32, 32, 3)

    def init(key, batch):
        params, stats = net.init(jax.random.split(key), views(batch)[:2])
        return TrainState.create(tx, params, **stats)

    def loss(params, state, batch, key):
        z, stats = net(params, state.extra, views(batch), train=True)
        value = nt_xent_loss(z[0::2], z[1::2], 0.1)
        return value, (stats, {"loss": value})

    data = feed(Arrays(pixels), BATCH)
    return stepper(Experiment(init=init, step=minimize(tx, loss), data=data, num_steps=10**6))


def theirs(folder, layout="contiguous_format"):
    import torch
    from torch.nn import functional as F
    import torchvision

    layout = getattr(torch, layout)
    net = torchvision.models.resnet18()
    net.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    net.maxpool = torch.nn.Identity()
    net.fc = torch.nn.Sequential(
        torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 128)
    )
    net = net.to(memory_format=layout)
    tx = torch.optim.SGD(net.parameters(), 0.03, momentum=0.9)
    pixels = torch.randint(256, (8, 2 * BATCH, 3, 32, 32), dtype=torch.uint8)
    same, other = torch.eye(2 * BATCH), torch.arange(2 * BATCH) ^ 1

    def run(steps):
        for i in range(steps):
            x = (pixels[i % 8] / 255.0).to(memory_format=layout)
            z = F.normalize(net(x))
            F.cross_entropy(z @ z.T / 0.1 - 1e9 * same, other).backward()
            tx.step()
            tx.zero_grad(set_to_none=True)

    return run
