"""SimCLR with lightly, as its user writes it, with the settings of experiments/simclr.py.

    python simclr_lightly.py doodles.npz OUT.npz [EPOCHS]

Features of the training and test images go to OUT.npz.
"""

import sys
import time

from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
import numpy as np
from PIL import Image
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

BATCH, RATE, WARMUP = 128, 2e-3, 0.1


class Drawings(Dataset):
    """Images of one split, each as two views."""

    def __init__(self, images, transform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.images[i]))


class ConvNet(nn.Sequential):
    """Four convolutions of stride 2 with BatchNorm and ReLU, and the mean over positions."""

    def __init__(self, channels, widths):
        layers = []
        for i, width in enumerate(widths):
            pad = nn.ZeroPad2d((1, 2, 1, 2) if i == 2 else 1)  # 28, 14, 7, 4 and 2 pixels.
            conv = nn.Conv2d(channels, width, 4, 2, bias=False)
            layers += [pad, conv, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@torch.no_grad()
def features(net, images):
    x = torch.from_numpy(images)[:, None] / 255
    return torch.cat([net(part) for part in x.split(500)]).numpy()


def main(path, out, epochs=12):
    data = np.load(path)
    transform = SimCLRTransform(
        input_size=28,
        cj_strength=0.5,  # 0.4 of brightness and contrast, as the default there.
        min_scale=0.2,
        gaussian_blur=0,
        normalize=None,
    )
    views = Drawings(data["train_images"], transform)
    loader = DataLoader(
        views, BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
    )
    net, head = ConvNet(1, (32, 64, 128, 256)), SimCLRProjectionHead(256, 256, 128)
    criterion = NTXentLoss(temperature=0.1)
    parameters = [*net.parameters(), *head.parameters()]
    tx = torch.optim.AdamW(parameters, RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        tx, RATE, epochs * len(loader), pct_start=WARMUP, cycle_momentum=False
    )
    first = None
    for _ in range(epochs):
        for x0, x1 in loader:
            z0, z1 = head(net(x0)), head(net(x1))
            loss = criterion(z0, z1)
            loss.backward()
            tx.step()
            tx.zero_grad()
            schedule.step()
            if first is None:
                first = time.time()
                print(f"FIRST {first}", flush=True)
    seconds = time.time() - first
    print(f"RATE {(epochs * len(loader) - 1) * BATCH / seconds}", flush=True)
    net.eval()
    np.savez(
        out, train=features(net, data["train_images"]), test=features(net, data["test_images"])
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
