"""Fine-tuning (Chen et al., 2020, https://arxiv.org/abs/2002.05709, section 4.2): a trained encoder, by few labels.

    launch/local.sh experiments/simclr.py --run.workdir runs/simclr
    launch/local.sh experiments/finetune.py --fraction 0.1 --pretrained runs/simclr                # the ledger: digits 94.7
    launch/local.sh experiments/finetune.py --fraction 0.1 --pretrained runs/simclr --scratch      # its floor: 92.3
    launch/local.sh experiments/finetune.py --data cifar10 --view-size 24 --flip 0.5 --fraction 0.01 --epochs 2 \
        --pretrained runs/simclr_cifar10                                                       # 45.0, from scratch 40.4

Any run serves whose --help lists an encoder (simclr, byol, rotation, supervised, ...), and those of mae and ijepa.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import feed, images
from ssljax.data.sources import share
from ssljax.data.views import Views
from ssljax.evals.accuracy import accuracy
from ssljax.evals.pictures import feature_map, views
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, Encoder
from ssljax.optim import adamw, warmup_cosine
from ssljax.pretrained import encoder_of, net_json


def finetune(
    data: str = "digits",
    image_size: int = 0,
    pretrained: str = "",
    lane: int = 0,
    scratch: bool = False,
    fraction: float = 1.0,
    encoder: Encoder = ConvNet(),
    view: Views = Views(crop=0.6, flip=0.0, jitter=0.0, gray=0.0),
    epochs: int = 50,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
) -> Experiment:
    """An encoder and a new linear layer, trained together by all labels or by a share of them.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        pretrained: Folder of the run whose encoder to start from; empty to train the one given from scratch.
        lane: Which seed of that run, counted from 0.
        scratch: Take the form of that run's encoder, but new weights: what fine-tuning must beat.
        fraction: Of each class's images and labels, what is trained on, drawn once: 1, 0.1 or 0.01.
        encoder: The net where none is pretrained; a pretrained one is of the form that its run has recorded.
        epochs: As many steps as these take over the whole set, whatever the fraction.
        lr: Its peak, after a warm-up over a tenth of training.
    """
    whole, test = (images(data, split, image_size) for split in ("train", "test"))
    train, num_steps = share(whole, fraction), epochs * (len(whole) // min(batch_size, len(whole)))
    tx, head = adamw(warmup_cosine(lr, num_steps), weight_decay), nn.Dense(whole.num_classes)
    old = encoder_of(pretrained, lane) if pretrained else None
    features = Chain(encoder=old.net if old else encoder)

    def init(key, batch):
        k1, k2 = jax.random.split(key)
        x = view(key, batch["image"][:2])
        params, stats = features.init((k1,), x)
        h, _ = features(params, stats, x, train=False)
        return TrainState.create(tx, params | {"head": head.init(k2, h)["params"]}, **stats)

    def loss(params, state, batch, key):
        h, stats = features(params, state.extra, view(key, batch["image"]), train=True)
        z = head.apply({"params": params["head"]}, h)
        value = optax.softmax_cross_entropy_with_integer_labels(z, batch["label"]).mean()
        return value, (
            stats,
            {"loss": value, "train_accuracy": 100 * jnp.mean(z.argmax(-1) == batch["label"])},
        )

    encode = lambda state, x: features(state.params, state.extra, view.whole(x), train=False)[0]
    logits = lambda state, x: head.apply({"params": state.params["head"]}, encode(state, x))
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, min(batch_size, len(train))),
        num_steps=num_steps,
        warm_start=old.warm_start if old and not scratch else None,
        files={"net.json": net_json(features.nets["encoder"])},
        evals={
            "test": accuracy(logits, test),
            "features": feature_map(encode, test),
            "views": views(view, train),
        },
    )


if __name__ == "__main__":
    main(finetune)
