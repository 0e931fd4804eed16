"""Fine-tuning a pretrained encoder with few labels (SimCLR: Chen et al., 2020, section 4.2,
https://arxiv.org/abs/2002.05709).

    launch/local.sh experiments/simclr.py --run.workdir runs/simclr
    launch/local.sh experiments/finetune.py --fraction 0.1 --pretrained runs/simclr
    launch/local.sh experiments/finetune.py --fraction 0.1 --pretrained runs/simclr --scratch
    # Digits. Accuracy in the ledger: 94.7 %; from scratch 92.3 %
    launch/local.sh experiments/simclr.py --data digits --epochs 50 --run.workdir runs/simclr_digits
    launch/local.sh experiments/finetune.py --data digits --fraction 0.1 \
        --pretrained runs/simclr_digits
    # Accuracy in the ledger: 45.0 %; from scratch 40.4 %
    launch/local.sh experiments/finetune.py --data cifar10 --view-size 24 --flip 0.5 \
        --fraction 0.01 --epochs 2 --pretrained runs/simclr_cifar10

`--pretrained` takes a run of any file with an encoder (simclr, byol, rotation, supervised, ...),
of mae, simmim and ijepa; one that encodes with other nets (vae, dcgan, bigan, autoencoder, ...), on
images of the same size, with its batch statistics fixed; or weights in a file: of `ssljax.export`,
or a ResNet or ViT of torchvision, timm or transformers, with its config.json.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, Kept, main, minimize, TrainState
from ssljax.data import feed, few, PlainImages, steps_of
from ssljax.data.sources import share
from ssljax.data.views import Views
from ssljax.evals.accuracy import accuracy
from ssljax.evals.pictures import feature_map, views
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, Encoder, is_known
from ssljax.optim import adamw, warmup_cosine
from ssljax.pretrained import encoder_of
from ssljax.ranges import checked, Count, CountOrZero, NotNegative, PositiveFraction


@checked
def finetune(
    data: PlainImages = PlainImages(),
    pretrained: str = "",
    lane: CountOrZero = 0,
    scratch: bool = False,
    fraction: PositiveFraction = 1.0,
    encoder: Encoder = ConvNet(),
    view: Views = Views(crop=0.6, flip=0.0, jitter=0.0, gray=0.0),
    epochs: Count = 50,
    batch_size: Count = 128,
    lr: NotNegative = 1e-3,
    weight_decay: NotNegative = 1e-4,
) -> Experiment:
    """An encoder and a new linear layer, trained together on all labels or a fraction of them.

    Args:
        data: Images to learn from.
        pretrained: Folder of the run whose encoder to start from, a .safetensors or a folder with
            one, or hf-hub:OWNER/NAME; empty to start from scratch.
        lane: Index of the seed in that run, from 0.
        scratch: Use that run's architecture with new weights: what fine-tuning must beat.
        fraction: Fraction of each class's training images to learn from: 1, 0.1 or 0.01.
        encoder: Encoder if none is pretrained; a run's record has its own. From Python also a
            module of your own, which the pretrained run was made with.
        view: Random view of an image in training.
        epochs: Length of training: passes over the whole set, whatever the fraction.
        batch_size: Images in a step.
        lr: Peak learning rate, after a warm-up over a tenth of training.
        weight_decay: Weight decay.
    """
    whole, test, *_ = data.read(whole=True, labels=True)
    train = share(whole, fraction)
    num_steps = steps_of(epochs, whole, min(batch_size, len(whole)))
    tx, head = adamw(warmup_cosine(lr, num_steps), weight_decay), nn.Dense(whole.num_classes)
    own = None if is_known(encoder) else encoder
    old = encoder_of(pretrained, lane, own) if pretrained else None
    net = old.net if old else encoder
    features = Chain(encoder=net)

    def init(key, batch):
        k1, k2 = jax.random.split(key)
        x = view(key, few(batch))
        params, stats = features.init((k1,), x)
        h, _ = features(params, stats, x, train=False)
        return TrainState.create(tx, params | {"head": head.init(k2, h)["params"]}, **stats)

    def loss(params, state, batch, key):
        h, stats = features(params, state.extra, view(key, batch), train=True)
        z = head.apply({"params": params["head"]}, h)
        value = optax.softmax_cross_entropy_with_integer_labels(z, batch["label"]).mean()
        right = jnp.mean(z.argmax(-1) == batch["label"])
        return value, (stats, {"loss": value, "train_accuracy": 100 * right})

    def encode(state, x):
        return features(state.params, state.extra, view.whole(x), train=False)[0]

    def logits(state, x):
        return head.apply({"params": state.params["head"]}, encode(state, x))

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, min(batch_size, len(train))),
        num_steps=num_steps,
        encode=encode,
        kept=lambda state: Kept(net, state.params["encoder"], state.extra["encoder"]),
        warm_start=old.warm_start if old and not scratch else None,
        evals={
            "test": accuracy(logits, test),
            "features": feature_map(encode, test),
            "views": views(view, train),
        },
    )


if __name__ == "__main__":
    main(finetune)
