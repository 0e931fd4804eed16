"""Optimizers and schedules against PyTorch, timm, lightly and transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssljax import optim
from ssljax.models.vit import ViT
from tests.peers.torch_side import tensor

STEPS = 12


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape) for name, shape in (("w", (5, 7)), ("b", (7,)))}


def gradients(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step + 1)
    return {name: rng.normal(size=x.shape) for name, x in weights().items()}


def our_path(tx: optax.GradientTransformation) -> np.ndarray:
    """How far all weights have moved after each of the steps."""
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights())
    state, path = tx.init(params), []
    for step in range(STEPS):
        grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradients(step))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        path.append(moved(params))
    return np.stack(path)


def moved(params) -> np.ndarray:
    start = weights()
    return np.concatenate([np.ravel(np.asarray(params[k]) - start[k]) for k in start])


def their_path(make, rate=lambda step: 1.0, decayed=("w",), weight_decay=0.1) -> np.ndarray:
    """The same of a PyTorch optimizer, whose rate is multiplied by `rate(step)`."""
    import torch

    params = {name: torch.nn.Parameter(tensor(x)) for name, x in weights().items()}
    groups = [
        {"params": [p], "weight_decay": weight_decay * (name in decayed)}
        for name, p in params.items()
    ]
    optimizer = make(groups)
    start, path = optimizer.param_groups[0]["lr"], []
    for step in range(STEPS):
        for name, p in params.items():
            p.grad = tensor(gradients(step)[name])
        for group in optimizer.param_groups:
            group["lr"] = start * rate(step)
        optimizer.step()
        path.append(moved({name: p.detach().numpy() for name, p in params.items()}))
    return np.stack(path)


def test_adamw(row):
    """AdamW that leaves biases undecayed: weights over 12 steps

    PyTorch's `AdamW` with two groups.
    """
    torch = row.peer("torch")
    theirs = their_path(lambda groups: torch.optim.AdamW(groups, lr=0.03))
    row.agree(our_path(optim.adamw(0.03, 0.1)), theirs, 2e-5)


def test_sgd(row):
    """SGD with momentum and decay of all weights: weights over 12 steps

    PyTorch's `SGD`.
    """
    torch = row.peer("torch")
    theirs = their_path(lambda g: torch.optim.SGD(g, lr=0.03, momentum=0.9), decayed=("w", "b"))
    row.agree(our_path(optim.optimizer_of("sgd", 0.03, 0.1)), theirs, 1e-5)


def lars_of(row, package: str):
    """LARS of timm or lightly, which scale only the groups that decay."""
    if package == "timm":
        lars = row.peer("timm.optim.lars").Lars
    else:
        lars = row.peer("lightly.utils.lars").LARS
    return lambda groups: lars(groups, lr=20.0, momentum=0.9)


def test_lars(row):
    """LARS at a constant rate: weights over 12 steps

    timm's `Lars` and lightly's `LARS` divide by |g| + β|w|, as You et al., algorithm 1; ours by
    |g + βw|, as the code of SimCLR, Barlow Twins and VICReg. Converted: at their β = 1e-6, where it
    makes no difference; unconverted at 0.1. Biases are neither decayed nor scaled.
    """
    for package in ("timm", "lightly"):
        theirs = their_path(lars_of(row, package), weight_decay=1e-6)
        row.agree(*(matrix(path) for path in (our_path(optim.lars(20.0, 1e-6)), theirs)), 1e-5)
    theirs = their_path(lars_of(row, "timm"))
    row.differ(*(matrix(path) for path in (our_path(optim.lars(20.0, 0.1)), theirs)), 0.02)


def matrix(path: np.ndarray) -> np.ndarray:
    """The part of the matrix: the bias moves a thousand times as far and would hide it."""
    return path[:, : weights()["w"].size]


def falling(step):
    return 1 - step / STEPS


def lars_formula(inside: bool) -> np.ndarray:
    """LARS in NumPy with a falling rate inside the momentum (SimCLR) or outside (Barlow Twins)."""
    params, path = weights(), []
    speed = {name: np.zeros_like(x) for name, x in params.items()}
    for step in range(STEPS):
        rate = 20 * falling(step)
        for name, g in gradients(step).items():
            p = params[name]
            if p.ndim > 1:
                g = g + 0.1 * p
                g = 0.001 * np.linalg.norm(p) / np.linalg.norm(g) * g
            speed[name] = 0.9 * speed[name] + (rate * g if inside else g)
            params[name] = p - speed[name] * (1.0 if inside else rate)
        path.append(moved(params))
    return np.stack(path)


def test_lars_falling_rate(row):
    """LARS at a falling rate: weights over 12 steps

    timm's `Lars` has the rate outside the momentum, as the code of BYOL, Barlow Twins, VICReg and
    MoCo v3 (`outer=True` here); SimCLR's code, and ours by default, inside. Both are used.
    Converted: with `outer=True`, and decay 1e-6.
    """
    rate = lambda step: 20 * falling(step)
    theirs = matrix(their_path(lars_of(row, "timm"), falling, weight_decay=1e-6))
    row.agree(matrix(our_path(optim.lars(rate, 1e-6, outer=True))), theirs, 1e-5)
    row.differ(matrix(our_path(optim.lars(rate, 1e-6))), theirs, 0.05)


def test_lars_codes(row):
    """LARS of SimCLR and of Barlow Twins: weights over 12 steps

    Their formulas in NumPy, with a falling rate inside and outside the momentum.
    """
    row.peer("numpy")
    rate = lambda step: 20 * falling(step)
    for inside in (True, False):
        ours = our_path(optim.lars(rate, 0.1, outer=not inside))
        row.agree(matrix(ours), matrix(lars_formula(inside)), 1e-5)


def test_warmup_cosine(row):
    """Warm-up and cosine: learning rates

    transformers' `get_cosine_schedule_with_warmup`.
    """
    optimization = row.peer("transformers.optimization")
    torch = row.peer("torch")
    del row.peers["torch"]
    for steps, warm in ((100, 10), (37, 0), (1000, 333)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        schedule = optimization.get_cosine_schedule_with_warmup(optimizer, warm, steps)
        theirs = [0.3 * schedule.lr_lambdas[0](step) for step in range(steps)]
        ours = optim.warmup_cosine(0.3, steps, warm / steps)
        row.agree([float(ours(step)) for step in range(steps)], theirs, 1e-5)


def test_warmup_lightly(row):
    """Warm-up and cosine, lightly's: learning rates

    lightly's warm-up starts at peak/n instead of 0 and reaches the peak at step n - 1 (DINO's too),
    and its cosine ends at the last step instead of after it. Ours is that of Barlow Twins, VICReg
    and transformers; a step more or less is seen in short runs only. Converted: one step later
    while it rises, and the cosine over one step less.
    """
    scheduler = row.peer("lightly.utils.scheduler")
    steps, warm = 100, 10
    theirs = [
        scheduler.cosine_warmup_schedule(step, steps, 0.3, 0.01, warm, 0.0) for step in range(steps)
    ]
    ours = [float(optim.warmup_cosine(0.3, steps, warm / steps, 0.01)(s)) for s in range(steps)]
    rising = [float(optim.warmup_cosine(0.3, steps, warm / steps)(s + 1)) for s in range(warm)]
    fall = optim.cosine(0.3, 0.01, steps - warm - 1)
    row.agree(rising + [float(fall(step)) for step in range(steps - warm)], theirs, 1e-5)
    row.differ(ours, theirs, 0.05)


def test_teacher_decay(row):
    """BYOL's and DINO's moving average: decays

    lightly's `cosine_schedule` over one step more, since it ends at the last step.
    """
    scheduler = row.peer("lightly.utils.scheduler")
    ours = optim.rising_decay(0.99, 200)
    theirs = [scheduler.cosine_schedule(step, 201, 0.99, 1.0) for step in range(200)]
    row.agree([float(ours(step)) for step in range(200)], theirs, 1e-5)


def test_decayed_parameters(row):
    """Weight decay: which parameters of a ViT have it

    timm's `param_groups_weight_decay` with the net's `no_weight_decay`: matrices, and neither
    biases, norms, positions nor the class token. Compared by their number.
    """
    timm = row.peer("timm.models.vision_transformer")
    groups = row.peer("timm.optim").param_groups_weight_decay
    net = timm.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=0
    )
    named = groups(net, 0.1, no_weight_decay_list=net.no_weight_decay())
    theirs = sum(p.numel() for p in next(g for g in named if g["weight_decay"])["params"])
    ours = ViT(patch=8, width=24, depth=2, heads=2, pool="token", positions="learned")
    shapes = jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    mask = optim.decay_mask(shapes)
    sizes = jax.tree.map(lambda x, decayed: x.size * bool(decayed), shapes, mask)
    row.agree(sum(jax.tree.leaves(sizes)), theirs, 0)
