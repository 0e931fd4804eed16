"""FID by Inception between CIFAR-10's training and test images.

About 3.15 for all 50,000 and 10,000 images, and larger for fewer.

    .venv/bin/python tests/benchmarks/inception_fid.py            # minutes on a GPU, hours on a CPU
    .venv/bin/python tests/benchmarks/inception_fid.py 3000       # fewer images
"""

import pathlib
import sys
import time

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent.parent))

from ssljax.data import images
from ssljax.evals.feature_nets import inception
from ssljax.evals.features import extractor, subset
from ssljax.evals.fid import comparison

if __name__ == "__main__":
    net, n = inception(), int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    extract, start = extractor(net.apply, net.batch_size), time.time()
    params = jax.tree.map(jax.numpy.asarray, net.params)
    real, test = (
        extract(params, data, subset(data, n))
        for data in (images("cifar10", s) for s in ("train", "test"))
    )
    print(f"{len(real)} training and {len(test)} test images in {time.time() - start:.0f} s")
    for name, number in comparison(real, real[: len(test)])(test).items():
        print(f"{name:10} {number:.5g}")
