"""ResNets against torchvision, and DCGAN's nets against PyTorch, with the same weights."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.models.dcgan import Discriminator, Generator
from ssljax.models.resnet import ResNet, STAGES
from tests.peers.torch_side import tensor


def kernel(weight) -> np.ndarray:
    """A convolution's weight (out, in, h, w) as (h, w, in, out)."""
    return weight.detach().numpy().transpose(2, 3, 1, 0)


def their_resnet(row, depth: int):
    """torchvision's, with random norms; without its classifier."""
    torchvision = row.peer("torchvision")
    torch = row.peer("torch")
    torch.manual_seed(depth)
    net = getattr(torchvision.models, f"resnet{depth}")()
    net.fc = torch.nn.Identity()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low in ((module.weight, 0.2), (module.running_var, 0.5)):
                values.data.uniform_(low, low + 0.5)
            for values in (module.bias, module.running_mean):
                values.data.normal_(0, 0.1)
    del row.peers["torch"]
    return net


def pairs(net, depth: int) -> list[tuple]:
    """torchvision's modules and our names of them."""
    found = [(net.conv1, "stem"), (net.bn1, "stem_norm")]
    for stage, blocks in enumerate(STAGES[depth], 1):
        for i in range(blocks):
            block, name = getattr(net, f"layer{stage}")[i], f"stage{stage}_block{i + 1}"
            for j in range(1, 4 if depth == 50 else 3):
                found += [
                    (getattr(block, f"conv{j}"), f"{name}_conv{j}"),
                    (getattr(block, f"bn{j}"), f"{name}_norm{j}"),
                ]
            if block.downsample is not None:
                found += [
                    (block.downsample[0], f"{name}_shortcut"),
                    (block.downsample[1], f"{name}_shortcut_norm"),
                ]
    return found


def copied(net, depth: int) -> dict:
    """The weights and statistics of torchvision's net in ours."""
    params, stats = {}, {}
    for module, name in pairs(net, depth):
        if module.weight.ndim == 4:
            params[name] = {"kernel": kernel(module.weight)}
        else:
            values = (module.weight, module.bias, module.running_mean, module.running_var)
            scale, bias, mean, var = (x.detach().numpy().copy() for x in values)
            params[name] = {"scale": scale, "bias": bias}
            stats[name] = {"mean": mean, "var": var}
    return {"params": params, "batch_stats": stats}


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_resnet(row, depth):
    """ResNet-18, -34 and -50: features of images

    torchvision's `resnet18`, `resnet34` and `resnet50` with the same weights and statistics.
    """
    net = their_resnet(row, depth).eval()
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    ours = ResNet(depth=depth, stem="imagenet")
    found = jax.jit(ours.apply)(copied(net, depth), x)
    theirs = net.double()(tensor(x).permute(0, 3, 1, 2)).detach()
    row.agree(found, theirs, 1e-5)


def test_batch_norm(row):
    """BatchNorm's running variance in training (ResNet-18)

    Flax averages the biased variance, PyTorch the unbiased, n/(n - 1) of it: 12 % apart where a
    map has 8 values of a channel, as in the last stage here. A convention, seen at small batches
    only. Converted: by that factor.
    """
    net = their_resnet(row, 18).train()
    x = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)
    before = copied(net, 18)
    ours = ResNet(depth=18, stem="imagenet")
    found = jax.jit(lambda v, x: ours.apply(v, x, train=True, mutable=["batch_stats"]))(before, x)
    net.double()(tensor(x).permute(0, 3, 1, 2))
    stats = found[1]["batch_stats"]
    counts = {"stem_norm": 8 * 16**2, "stage1_block1_norm1": 8 * 8**2, "stage4_block2_norm2": 8}
    for module, name in pairs(net, 18):
        if name in counts:
            theirs = module.running_var.numpy()
            old, n = before["batch_stats"][name]["var"], counts[name]
            new = np.asarray(stats[name]["var"])
            row.agree((new - 0.9 * old) * n / (n - 1) + 0.9 * old, theirs, 1e-5)
            if n == 8:
                row.differ(new - 0.9 * old, theirs - 0.9 * old, 0.1)


def randomised(net, *inputs: np.ndarray) -> dict:
    """Weights, scales and statistics of the net's shapes and of a sensible size, at random."""
    variables = jax.eval_shape(net.init, jax.random.key(0), *inputs)
    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    rng = np.random.default_rng(0)
    for name, x in flat.items():
        positive = name.endswith(("scale", "var"))
        drawn = rng.uniform(0.5, 1.5, x.shape) if positive else 0.1 * rng.normal(size=x.shape)
        flat[name] = drawn.astype(np.float32)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def their_norm(variables: dict, name: str, x):
    import torch

    p, s = (variables[k][name] for k in ("params", "batch_stats"))
    values = (tensor(v) for v in (s["mean"], s["var"], p["scale"], p["bias"]))
    return torch.nn.functional.batch_norm(x, *values, eps=1e-5)


def test_dcgan_generator(row):
    """DCGAN's generator: images of latents

    `linear`, `conv_transpose2d` (4, stride 2, padding 1), `batch_norm` and tanh in PyTorch.
    """
    functional = row.peer("torch.nn.functional")
    z = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
    net = Generator(shape=(32, 32, 3), widths=(24, 16, 12))
    variables = randomised(net, z)
    params = variables["params"]
    x = tensor(z) @ tensor(params["Dense_0"]["kernel"])
    x = x.reshape(5, 4, 4, 24).permute(0, 3, 1, 2)
    for i in range(3):
        x = their_norm(variables, f"BatchNorm_{i}", x).relu()
        w = tensor(params[f"Up_{i}"]["kernel"]).permute(2, 3, 0, 1).flip(2, 3)
        bias = params[f"Up_{i}"].get("bias")
        bias = None if bias is None else tensor(bias)
        x = functional.conv_transpose2d(x, w, bias, stride=2, padding=1)
    theirs = x.tanh().permute(0, 2, 3, 1)
    row.agree(net.apply(variables, jnp.asarray(z)), theirs, 1e-5)


def test_dcgan_discriminator(row):
    """DCGAN's discriminator: outputs of images

    `conv2d` (4, stride 2, padding 1), `batch_norm`, leaky ReLU and `linear` in PyTorch.
    """
    functional = row.peer("torch.nn.functional")
    x = np.random.default_rng(1).normal(size=(5, 32, 32, 3)).astype(np.float32)
    net = Discriminator(widths=(12, 16, 24))
    variables = randomised(net, x)
    params = variables["params"]
    y = tensor(x).permute(0, 3, 1, 2)
    for i in range(3):
        w = tensor(params[f"Conv_{i}"]["kernel"]).permute(3, 2, 0, 1)
        bias = params[f"Conv_{i}"].get("bias")
        y = functional.conv2d(y, w, None if bias is None else tensor(bias), stride=2, padding=1)
        y = their_norm(variables, f"BatchNorm_{i - 1}", y) if i else y
        y = functional.leaky_relu(y, 0.2)
    y = y.permute(0, 2, 3, 1).reshape(5, -1)
    theirs = y @ tensor(params["Dense_0"]["kernel"]) + tensor(params["Dense_0"]["bias"])
    row.agree(net.apply(variables, jnp.asarray(x)), theirs[:, 0], 1e-5)
