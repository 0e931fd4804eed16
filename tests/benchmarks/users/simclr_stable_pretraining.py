"""SimCLR with stable-pretraining, as its user writes it: as simclr_lightly.py otherwise.

    python simclr_stable_pretraining.py doodles.npz OUT.npz [EPOCHS]

Features of the training and test images go to OUT.npz.
"""

from functools import partial
import sys
import time

import lightning
import numpy as np
from PIL import Image
import stable_pretraining as spt
from stable_pretraining.data import transforms
from stable_pretraining.forward import simclr
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

BATCH, RATE, WARMUP = 128, 2e-3, 0.1


class Drawings(Dataset):
    """Images of one split with their labels."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return Image.fromarray(self.images[i]), int(self.labels[i])


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


class Clock(lightning.pytorch.Callback):
    """Prints when the first step has been done, and images a second after it."""

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.global_step == 1:
            self.first = time.time()
            print(f"FIRST {self.first}", flush=True)

    def on_train_end(self, trainer, module):
        steps = trainer.global_step - 1
        print(f"RATE {steps * BATCH / (time.time() - self.first)}", flush=True)


@torch.no_grad()
def features(net, images):
    x = torch.from_numpy(images)[:, None] / 255
    return torch.cat([net(part) for part in x.split(500)]).numpy()


def main(path, out, epochs=12):
    data = np.load(path)
    view = transforms.Compose(
        transforms.RandomResizedCrop((28, 28), scale=(0.2, 1.0)),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        transforms.RandomGrayscale(p=0.2),
        transforms.ToImage(scale=True),
    )
    images = spt.data.FromTorchDataset(
        Drawings(data["train_images"], data["train_labels"]),
        names=["image", "label"],
        transform=transforms.MultiViewTransform([view, view]),
    )
    loader = DataLoader(
        images, BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
    )
    steps = epochs * len(loader)
    head = nn.Sequential(
        nn.Linear(256, 256, bias=False), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 128)
    )
    module = spt.Module(
        backbone=ConvNet(1, (32, 64, 128, 256)),
        projector=head,
        forward=simclr,
        simclr_loss=spt.losses.NTXEntLoss(temperature=0.1),
        optim={
            "optimizer": partial(torch.optim.AdamW, lr=RATE, weight_decay=1e-4),
            "scheduler": partial(
                torch.optim.lr_scheduler.OneCycleLR,
                max_lr=RATE,
                total_steps=steps,
                pct_start=WARMUP,
                cycle_momentum=False,
            ),
            "interval": "step",
        },
    )
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[Clock()],
        logger=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    spt.Manager(trainer=trainer, module=module, data=spt.data.DataModule(train=loader))()
    net = module.backbone.eval()
    np.savez(
        out, train=features(net, data["train_images"]), test=features(net, data["test_images"])
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
