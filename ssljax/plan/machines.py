"""Machines that a program can be compiled for without having them: their figures and devices.

Compilers come with wheels: libtpu's for TPUs, and that of jax-cuda12-pjrt for NVIDIA's GPUs, which
needs no GPU, no driver and no CUDA library.
"""

from dataclasses import dataclass
import difflib
import importlib.metadata
import os
import re
from typing import Any

import jax

from ssljax.backends import quiet
from ssljax.errors import InputError

GPUS_PER_NODE = 8
GPU_SHARE = 0.95


@dataclass(frozen=True)
class Chip:
    """Figures of one accelerator, from its maker's data sheet: peaks without sparsity.

    `float32` is the rate of float32 products as JAX computes them by default: TF32 on a GPU,
    bfloat16 passes on a TPU. `links` is what one chip sends to the others of its node (NVLink) or
    slice (ICI) in a second, and `network` its share of the node's network.
    """

    memory: float  # Bytes.
    bandwidth: float  # Bytes of memory per second.
    bfloat16: float  # FLOP per second.
    float32: float  # FLOP per second.
    links: float  # Bytes per second, one way.
    network: float  # Bytes per second, one way; of TPUs the data centre's, between slices.
    cores: int = 0  # Streaming multiprocessors, and what else XLA's CUDA compiler asks:
    capability: tuple[int, int] = (0, 0)
    clock: float = 0.0  # GHz
    cache: int = 0  # Bytes of L2.
    shared: int = 0  # Bytes of shared memory per multiprocessor.
    title: str = ""  # Name that the driver gives the device.


# NVIDIA's data sheets (SXM modules): A100 80 GB, H100, H200, HGX B200. The network is that of a DGX
# node: eight ports of 200 (A100) or 400 Gbit/s for eight GPUs. Memory is what the driver reports,
# or for B200 the 180 GB of the data sheet.
_HOPPER: dict[str, Any] = dict(
    bfloat16=989.4e12,
    float32=494.7e12,
    links=450e9,
    network=50e9,
    cores=132,
    capability=(9, 0),
    clock=1.98,
    cache=50 * 2**20,
    shared=228 * 2**10,
)
GPUS = {
    "a100": Chip(
        memory=84_974_239_744,
        bandwidth=2.039e12,
        bfloat16=312e12,
        float32=156e12,
        links=300e9,
        network=25e9,
        cores=108,
        capability=(8, 0),
        clock=1.41,
        cache=40 * 2**20,
        shared=164 * 2**10,
        title="NVIDIA A100-SXM4-80GB",
    ),
    "h100": Chip(
        memory=84_942_979_072, bandwidth=3.352e12, **_HOPPER, title="NVIDIA H100 80GB HBM3"
    ),
    "h200": Chip(memory=150_110_011_392, bandwidth=4.8e12, **_HOPPER, title="NVIDIA H200"),
    "b200": Chip(
        memory=180e9,
        bandwidth=8e12,
        bfloat16=2250e12,
        float32=1125e12,
        links=900e9,
        network=50e9,
        cores=148,
        capability=(10, 0),
        clock=1.965,
        cache=126 * 2**20,
        shared=228 * 2**10,
        title="NVIDIA B200",
    ),
}
# Google's pages of each TPU version (cloud.google.com/tpu/docs); a chip of v2 and v3 is two devices
# of JAX, whose figures these are. The links of a chip are all of its ICI links, one way.
TPUS = {
    "v2": Chip(8 * 2**30, 350e9, 23e12, 23e12, 62e9, 6.25e9),
    "v3": Chip(16 * 2**30, 450e9, 61.5e12, 61.5e12, 82e9, 6.25e9),
    "v4": Chip(32 * 2**30, 1228e9, 275e12, 275e12, 300e9, 6.25e9),
    "v5e": Chip(16 * 2**30, 819e9, 197e12, 197e12, 200e9, 6.25e9),
    "v5p": Chip(95 * 2**30, 2765e9, 459e12, 459e12, 600e9, 6.25e9),
    "v6e": Chip(32 * 2**30, 1640e9, 918e12, 918e12, 400e9, 12.5e9),
    "tpu7x": Chip(96 * 2**30, 3690e9, 1153e12, 1153e12, 600e9, 12.5e9),
}
# Topologies of Google's v5litepod-N and v6e-N.
SLICES = {"1": "1x1", "4": "2x2", "8": "2x4", "16": "4x4", "32": "4x8", "64": "8x8"}
SLICES |= {"128": "8x16", "256": "16x16"}
KNOWN = (
    f"N GPUs, {GPUS_PER_NODE} in a node ({', '.join(f'{gpu}xN' for gpu in GPUS)}, as in h100x64), "
    f"or a TPU and its topology ({', '.join(TPUS)}, as in v5e:16x16 and v4:2x2x4)"
)


@dataclass(frozen=True)
class Machine:
    """Some devices of one kind, `per_node` of which are joined by the chip's own links."""

    name: str
    chip: Chip
    devices: Any  # JAX's devices, that programs can be compiled for.
    per_node: int

    @property
    def count(self) -> int:
        return len(self.devices)

    @property
    def is_gpu(self) -> bool:
        return bool(self.chip.cores)

    @property
    def available(self) -> int:
        """Bytes of a device that a program can have.

        Of a GPU 95 %: JAX takes 75 % at its start unless XLA_PYTHON_CLIENT_MEM_FRACTION says more,
        and the driver and the libraries need a part. A TPU's compiler keeps 256 MiB.
        """
        return round(self.chip.memory * GPU_SHARE if self.is_gpu else self.chip.memory - 2**28)

    @property
    def options(self) -> dict[str, Any]:
        """Compiler options without which programs don't compile where there is no such device."""
        return {"xla_gpu_enable_triton_gemm": False} if self.is_gpu else {}


def machine_of(name: str) -> Machine:
    """The machine of a name; InputError for an unknown one, and where its compiler is missing."""
    lower = name.lower()
    if found := re.fullmatch(r"([a-z]+\d+)(?:x(\d+))?", lower):
        if found[1] in GPUS:
            return _gpus(lower, found[1], int(found[2] or 1))
    elif ":" in lower and lower.partition(":")[0] in TPUS:
        return _tpus(lower)
    near = _near(lower)
    hint = f"did you mean {near}? Otherwise " if near else ""
    raise InputError(f"There is no machine {name} to plan for: {hint}give {KNOWN}.")


def _near(name: str) -> str:
    """The machine that a name may mean, as v5e:4x4 by v5litepod-16; empty if it is near none."""
    parts = re.match(r"(.*?)(?:(?:[^a-z\d]+x?|x)(\d+))?$", name.replace("v5litepod", "v5e"))
    kind, count = parts.groups() if parts else (name, None)
    found = difflib.get_close_matches(re.split(r"[:x]", kind)[0], [*GPUS, *TPUS], 1)
    if not found or count is None:
        return "".join(found)
    if found[0] in GPUS:
        return f"{found[0]}x{count}"
    slices = SLICES if found[0] in ("v5e", "v6e") else {}
    return f"{found[0]}:{slices[count]}" if count in slices else found[0]


def _gpus(name: str, kind: str, count: int) -> Machine:
    if count < 1 or (count > GPUS_PER_NODE and count % GPUS_PER_NODE):
        raise InputError(
            f"A node has {GPUS_PER_NODE} GPUs: give {kind}x1 to {kind}x{GPUS_PER_NODE}, or a "
            f"multiple of {GPUS_PER_NODE}, not {name}."
        )
    _check("jax-cuda12-pjrt", same_as_jax=True)
    per_node = min(count, GPUS_PER_NODE)
    chip = GPUS[kind]
    devices = _topology(
        name,
        platform="cuda",
        topology_name="",
        topology=f"1x{count // per_node}x{per_node}",
        target_config=target_config(chip),
    )
    return Machine(name, chip, devices, per_node)


def _tpus(name: str) -> Machine:
    _check("libtpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # It would ask Google's cloud what this is.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # No process has a TPU.
    how: dict[str, Any] = {}
    if name.startswith("v4:"):
        how["chip_config_name"] = "megacore"  # One device a chip, as JAX has it on a TPU VM.
    if name.endswith(":1x1"):
        how["chips_per_host_bounds"] = (1, 1, 1)
    devices = _topology(name, platform="tpu", topology_name=name, **how)
    return Machine(name, TPUS[name.partition(":")[0]], devices, len(devices))


def _check(package: str, same_as_jax: bool = False) -> None:
    """InputError where a compiler's wheel is missing, or not of JAX's version."""
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"--run.plan needs the package {package}, which is not installed: pip install "
            '"ssljax[plan]".'
        ) from None
    if same_as_jax and found != jax.__version__:
        raise InputError(
            f"{package} is of version {found} and jax of {jax.__version__}: pip install "
            f'"{package}=={jax.__version__}".'
        )


def _topology(name: str, **how: Any) -> Any:
    from jax.experimental import topologies

    with quiet():  # What the compiler prints on an error is in the exception, too.
        try:
            return topologies.get_topology_desc(**how).devices
        except Exception as e:
            error = e
    why = " ".join(str(error).split())[:200]
    raise InputError(
        f"{name} is no machine that its compiler knows ({why}). Give {KNOWN}."
    ) from error


def target_config(chip: Chip) -> str:
    """What XLA's CUDA compiler asks of a device, in protobuf's text form (TargetConfigProto)."""
    major, minor = chip.capability
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {chip.shared}
  threads_per_core_limit: 2048
  core_count: {chip.cores}
  fpus_per_core: {64 if major == 8 else 128}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {round(chip.bandwidth)}
  l2_cache_size: {chip.cache}
  clock_rate_ghz: {chip.clock}
  device_memory_size: {round(chip.memory)}
  shared_memory_per_block_optin: {chip.shared - 1024}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{chip.title}"
"""
