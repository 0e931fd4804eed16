"""Every experiment file, tiny: it trains, resumes to the bit and evaluates, and computes the same
on any layout of devices, of which none computes the whole batch."""

import ast
from dataclasses import replace
from functools import partial
import inspect
import itertools
import json
import re
import shutil

import jax
import numpy as np
import pytest

from ssljax import Run, sharding, train
from ssljax.data.views import MultiCrop, Views
from ssljax.models.convnet import ConvNet
from ssljax.models.mlp import MLP
from ssljax.models.transformer import Transformer
from ssljax.models.unet import TimeUNet
from ssljax.models.vit import ViT
from ssljax.plan.hlo import collectives, parse
from ssljax.program import everywhere, Program
from tests.conftest import ROOT
from tests.small import make, SMALL

FILES = sorted(p for p in (ROOT / "experiments").glob("*.py"))
# Layouts are of one, seven and eight devices. On seven, each has 8 of the 56 examples; as no other
# length has 7 as a factor, an array with a multiple of 56 as a length holds the whole batch.
BATCH = 56
LAYOUTS = SMALL | {
    "batch_size": BATCH,
    "image_size": 8,
    "view": Views(crop=0.5, jitter=0.0, gray=0.0),  # Colours cost the compiler most.
    "crops": MultiCrop(Views(crop=0.2, jitter=0.0, gray=0.0)),
    "encoder": ConvNet(widths=(8, 16)),
    "vit": ViT(patch=2, width=12, depth=1, heads=3),
    "decoder_width": 12,
    "predictor_width": 12,
    "net": Transformer(2, 1, 12, dropout=0.1),
    "text": Transformer(2, 1, 12, dropout=0.1),
    "unet": TimeUNet(widths=(8, 12), heads=2, groups=4, dropout=0.1),
    "vocabulary": 300,
    "head": MLP((16, 10), norm=True),
    "predictor": MLP((12, 10), norm=True),
    "queue": 2 * BATCH,
    "prototypes": 10,
    "frozen": 0.0,
    "window": 24,  # A spectrogram of 9 frames.
    "at_once": BATCH,
    "entries": 16,  # Of 128, two are so near that rounding chooses between them.
}
# BatchNorm in the head removes the bias of a ViT's last norm, whose gradient is rounding alone.
OF_FILE = {"ibot": {"head": MLP((16, 10))}}
# Files with an array of the whole batch on each device, why, and how many numbers of an example
# the devices exchange for it in a step.
NEGATIVES = "the loss compares each example with all others"
CARRIED = "the hidden state is carried from step to step by the state, which is on each device"
QUEUE = "the queue is on each device, and takes all keys"
WHOLE_BATCH = {
    "awd_lstm": (CARRIED, 0),  # Gathered with the rest of extra.
    "clip": (NEGATIVES, 2 * 10),
    "cpc": (NEGATIVES, 16 * 64),  # The codes of a wave.
    "lstm": (CARRIED, 0),
    "moco": (QUEUE, 10),
    "mocov3": (NEGATIVES, 2 * 10),
    "nnclr": (f"{NEGATIVES}; {QUEUE}", 4 * 10),
    "simclr": (NEGATIVES, 2 * 10),
    "simcse": (NEGATIVES, 12),
    "supcon": (f"{NEGATIVES}, also by their labels", 2 * 11),
}
# What moves an array from device to device as it is; sums over devices, as of gradients, do not.
EXCHANGES = ("all-gather", "all-to-all", "collective-permute")
# Lines by which parameters and extra are gathered.
SOURCE, FIRST = inspect.getsourcelines(inspect.unwrap(sharding._laid_out))
GATHERED = {f"ssljax/sharding.py:{FIRST + i}" for i in range(len(SOURCE))}


class Layout:
    """An experiment's program on `n` devices, its parameters split over `fsdp` of them."""

    def __init__(self, exp, n, fsdp):
        self.exp, self.mesh, self.split = exp, mesh_of(n, fsdp), fsdp > 1
        with jax.set_mesh(self.mesh):
            self.resident = jax.tree.map(lambda x: everywhere(x, self.mesh), exp.data.resident())
            self.first = next(exp.data.feed(0, 0, self.mesh))
            self.program = Program(exp, Run(fsdp=fsdp), self.mesh, self.first, self.resident)
            metrics, key = self.program.new_accumulator(), self.program.keys[0]
            step = self.program.compiled
            shapes = self.program.shapes(), metrics, key, self.resident, (self.first,)
            # A program of the cache would have the lines of the source that it was compiled from.
            jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
            try:
                self.step = step.lower(*shapes).compile()
            finally:
                jax.config.update("jax_compilation_cache_include_metadata_in_key", False)

    def init(self):
        with jax.set_mesh(self.mesh):
            return self.program.init([self.first])

    def advance(self, state, start, end):
        """The state on the host after the steps from `start` to `end`."""
        with jax.set_mesh(self.mesh):
            state = jax.device_put(jax.device_get(state), self.program.layout)
            metrics = self.program.new_accumulator()
            feed = itertools.islice(self.exp.data.feed(0, start, self.mesh), end - start)
            for fed in feed:
                key = self.program.keys[0]
                state, metrics = self.step(state, metrics, key, self.resident, (fed,))
            return jax.device_get(state)

    def whole_batches(self):
        """Shapes in the program of one device that are of the whole batch, not its own part."""
        text = re.sub(r"metadata=\{[^}]*\}", "", self.step.as_text())
        shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"\w+\[([\d,]+)\]", text)}
        fed = {x.shape for x in jax.tree.leaves((self.resident, self.first))}  # On every device.
        return {s for s in shapes - fed if any(d % BATCH == 0 for d in s)}

    def exchanged(self):
        """Bytes of arrays that move from device to device as they are, by kind and line.

        On all devices, of arrays with at least one number for each example. Parameters and what is
        in extra are not among them: those are gathered once, or more where they move in between.
        """
        found, state = {}, 0
        for c in collectives(parse(self.step.as_text()), self.mesh.size, self.mesh.size):
            copies = 1 if c.kind == "all-gather" else self.mesh.size
            if c.kind == "all-gather" and c.line in GATHERED:
                state += c.bytes
            elif c.kind in EXCHANGES and copies * c.bytes >= 4 * BATCH:
                what = f"{c.kind} of {c.line or 'the new state'}"
                found[what] = found.get(what, 0) + copies * c.bytes
        arrays = jax.tree.leaves((self.program.state.params, self.program.state.extra))
        assert state <= 3 * sum(x.size * x.dtype.itemsize for x in arrays)
        return found


def mesh_of(n, fsdp):
    kinds = (jax.sharding.AxisType.Auto,) * 2
    devices = jax.devices()[:n]
    return jax.make_mesh((n // fsdp, fsdp), ("data", "fsdp"), axis_types=kinds, devices=devices)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
class TestFile:
    def test_reads_like_the_paper(self, file):
        header = file.read_text().split('"""')[1]
        assert "arxiv.org" in header, "the module docstring must have the paper's arxiv.org"
        command = f"launch/local.sh experiments/{file.name}"
        assert command in header, f"the module docstring must have the command {command}"
        function = next(
            n for n in ast.parse(file.read_text()).body if getattr(n, "name", "") == file.stem
        )
        body = [n for n in function.body if isinstance(n, ast.FunctionDef)]
        lines = sum(n.end_lineno - n.lineno + 1 for n in body)
        assert lines <= 52, f"init, loss, step and encode take {lines} lines: about 45 fit a screen"

    def test_layouts_agree(self, file, costly):
        """One device, seven, and eight with parameters split over four: on what a step changes.

        That is Adam's moments, which are the gradients (without an Adam, the parameters), and all
        that moves without a gradient. Each layout starts from the state after three steps on one
        device, when teachers, centres, queues and prototypes are no longer as initialised.
        """
        costly(FILES.index(file), of=4)
        exp = make(file, 4, LAYOUTS | OF_FILE.get(file.stem, {}))
        exp = replace(exp, evals={}, partition=partial(sharding.fsdp, min_size=1))
        one, seven, split = Layout(exp, 1, 1), Layout(exp, 7, 1), Layout(exp, 8, 4)
        start = one.advance(one.init(), 0, 3)

        def change(layout):
            before, after = moving(start), moving(layout.advance(start, 3, 4))
            return jax.tree.map(lambda a, b: b - a, before, after)

        moments, extra = change(one)
        for layout in (seven, split):
            other_moments, other_extra = change(layout)
            for a, b in zip(extra, other_extra, strict=True):
                np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(a).max() + 1e-6)
            for a, b in zip(moments, other_moments, strict=True):
                np.testing.assert_allclose(a, b, atol=2e-4 * np.abs(a).max() + 5e-8)
        check_exchanged(file, seven)
        found = seven.whole_batches()
        if file.stem in WHOLE_BATCH:
            assert found, "no reason needed any more: remove it from WHOLE_BATCH"
        else:
            assert not found, (
                f"Each device computes the whole batch: {found}. Put over_batch around noise, "
                "masks and indices that are born in the step. If the method needs the whole batch, "
                f"as a queue does, add {file.stem} to WHOLE_BATCH with the reason."
            )

    def test_devices_exchange_no_activations(self, file, costly):
        """On eight devices, with parameters split over two: each step moves what the loss compares,
        parameters, and sums over the devices."""
        costly(FILES.index(file) + 2, of=4)
        exp = make(file, 4, LAYOUTS | OF_FILE.get(file.stem, {}))
        exp = replace(exp, evals={}, partition=partial(sharding.fsdp, min_size=1))
        check_exchanged(file, Layout(exp, 8, 2))

    def test_trains_resumes_and_evaluates(self, file, costly, tmp_path, one_device):
        """A run that was killed ends with the bits of an unbroken one, and with all results."""
        costly(FILES.index(file) + 1, of=4)
        run, exp = Run(workdir=str(tmp_path), save_every=2), make(file, 4)
        whole = train(replace(make(file, 4), evals={}), run)
        assert (tmp_path / "checkpoints" / "2").is_dir()
        shutil.rmtree(tmp_path / "checkpoints" / "4")  # As if it had been killed after step 2.
        (tmp_path / "results.json").unlink()
        rest = train(exp, run)
        jax.tree.map(np.testing.assert_array_equal, whole, rest)
        found = json.loads((tmp_path / "results.json").read_text())
        wanted = {name for name, evaluate in exp.evals.items() if not evaluate.pictures}
        for numbers in (found["results"], found["untrained"]):
            assert {name.split("/")[0] for name in numbers} == wanted
        assert (tmp_path / "report.html").exists()


def check_exchanged(file, layout):
    """Devices exchange the numbers of `WHOLE_BATCH` at most, and some if there are any."""
    found = layout.exchanged()
    most = 4 * BATCH * WHOLE_BATCH.get(file.stem, ("", 0))[1]
    assert sum(found.values()) <= most, (
        f"Devices exchange {found} bytes. Keep the examples first, and what belongs to one example "
        "next to each other, as Views.several does; put over_batch around arrays that are born in "
        "the step. If the loss needs them, give the reason in WHOLE_BATCH."
    )
    # What is carried in extra is gathered with it.
    needed = not most or found or layout.split
    assert needed, "no reason needed any more: remove it from WHOLE_BATCH"


def moving(state):
    """Arrays of a state that show its gradients, and floats that move without one."""
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    extra = [x for x in jax.tree.leaves(state.extra) if x.dtype.kind == "f"]
    return moments or jax.tree.leaves(state.params), extra


@pytest.mark.parametrize(
    "name, steps, number, factor",
    [
        *(
            (gan, 100, "test/kid_pixels", 0.8)
            for gan in ("dcgan", "lsgan", "projection", "r1gan", "r3gan", "sngan")
        ),
        ("gan", 200, "test/kid_pixels", 0.4),
        ("wgan_gp", 100, "test/kid_pixels", 0.95),
        ("ddpm", 150, "test/kid_pixels", 0.5),
        ("flow", 150, "test/kid_pixels", 0.5),
        ("vae", 150, "test/nll", 0.7),
        ("iwae", 150, "test/nll", 0.75),
        ("cvae", 150, "classify/accuracy", 5),
        ("vqvae", 150, "rate/psnr", 1.5),
        ("autoencoder", 150, "test/squared_error", 0.2),
        ("mae", 100, "knn/accuracy", 1.2),
        ("simmim", 100, "test/error", 0.6),
        ("rotation", 100, "angle/accuracy", 1.5),
        ("inpainting", 100, "hole/psnr", 1.25),
    ],
)
def test_training_improves_metrics(name, steps, number, factor, one_device):
    """By far: a loss of the wrong sign, or a player that doesn't move, is seen."""
    exp, (kind, what) = (
        make(ROOT / "experiments" / f"{name}.py", steps, adversarial=0.001),
        number.split("/"),
    )
    at = lambda steps: exp.evals[kind](train(replace(exp, evals={}, num_steps=steps)))[what]
    fresh, trained = at(1), at(steps)
    assert trained < factor * fresh if factor < 1 else trained > factor * fresh, (fresh, trained)


def test_simclr_learns_digits(one_device):
    """A minute's training beats the untrained net by far."""
    exp = make(ROOT / "experiments" / "simclr.py", 150, batch_size=128, epochs=50)
    exp = replace(exp, evals={"knn": exp.evals["knn"]})
    trained = exp.evals["knn"](train(exp))["accuracy"]
    untrained = exp.evals["knn"](train(replace(exp, num_steps=1)))["accuracy"]
    assert trained > untrained + 3 and trained > 88
