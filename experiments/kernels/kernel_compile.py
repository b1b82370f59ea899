"""Registers, spills and tensor-core instructions of every GPU kernel, compiled without a GPU.

    python -m experiments.kernels.kernel_compile  # every kernel, several minutes
    python -m experiments.kernels.kernel_compile --implementation=pallas_triton --shape=4x128-l4096
    # another block size
    python -m experiments.kernels.kernel_compile --blocks=64,64,8,2 --shape=4x128-l4096-bias

Needs jax-cuda13-plugin, jax-cuda13-pjrt and nvidia-cuda-nvcc of the version of jax; for jax_triton
also jax-triton and triton. What is not installed is skipped with the reason. Forward and backward
are compiled with the shipped block sizes; the exit code is 1 when a kernel spills registers or does
not compile. Nothing runs, so nothing is timed.
"""

from __future__ import annotations

import argparse
import collections
import functools
import glob
import importlib.util
import inspect as python_inspect
import json
import os
import re
import site
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments.common.results import RESULTS, ROOT, arguments, command_line, keep

RESULT = RESULTS / "kernel_compile.json"
IMPLEMENTATIONS = ("pallas_triton", "pallas_mosaic_gpu", "jax_triton")
SHAPES = (
    "ml_1m-base-bias", "ml_1m-base-bf16-bias", "ml_1m-large-bias", "ml_1m-large-bf16-bias",
    "books-bias", "books-bf16-bias", "4x64-l4096", "4x64-l4096-bias", "4x128-l4096",
    "4x128-l4096-bias", "4x256-l4096", "4x256-l4096-bias",
)  # fmt: skip
DEVICE = "NVIDIA H100 80GB HBM3"
# The device for the compiler (a GpuTargetConfigProto); numbers of the vendor's data sheet and XLA.
TARGET = f"""
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32
  shared_memory_per_block: 49152  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048  core_count: 132  fpus_per_core: 128
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{DEVICE}"
"""
KERNEL = re.compile(
    r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.S,
)
THUNK = re.compile(r"(\w+) grid: .* shared_memory: (\d+) bytes")


def compile_one(implementation: str, shape: str, blocks: str) -> None:
    """Compile forward and backward of one shape; the compilers write to the dump folder."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import NamedSharding, PartitionSpec

    from pallas_kernels import dispatch, specs
    from pallas_kernels.bench import measure as bench

    spec = specs.SPECS[shape]
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=TARGET, topology="1x1x1"
    )  # fmt: skip
    mesh = topologies.make_mesh(topology, (1,), ("x",))
    whole = NamedSharding(mesh, PartitionSpec())
    attend = dispatch.load(implementation)
    sizes = tuple(int(n) for n in blocks.split(",")) if blocks else None
    arrays = bench.input_sets(spec, 1)[0]
    arrays = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) for name, x in arrays.items()
    }
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        device = dispatch.current_device()
        if reason := dispatch.why_not(
            implementation, device, spec.dtype, max(spec.qk_width, spec.v_width)
        ):
            print(json.dumps({"skipped": reason}))
            return
        if implementation == "jax_triton":
            attend = functools.partial(attend, compute_capability=90)
        part = "forward" if implementation == "jax_triton" else "forward_backward"
        shared = record_shared_memory() if implementation == "pallas_mosaic_gpu" else {}
        lowered = jax.jit(bench.functions(attend, spec, sizes)[part]).lower(arrays)
        found: dict = {"shared": shared}
        if (
            implementation != "jax_triton"
        ):  # Triton compiles at lowering, and may be newer than XLA's assembler
            memory = bench.memory(lowered.compile())
            found["temp_mib"] = memory["temp_bytes"] / 2**20
    print(json.dumps(found))


def record_shared_memory() -> dict[str, int]:
    """Dict that fills with the shared memory of each Mosaic kernel while it is lowered."""
    from jax.experimental.mosaic.gpu import core

    lower, sizes = core._lower_as_gpu_kernel, {}

    def spy(*args, **kwargs):
        given = python_inspect.signature(lower).bind(*args, **kwargs).arguments
        sizes[given["kernel_name"]] = core._smem_tree_size(given["smem_scratch_shape"])
        return lower(*args, **kwargs)

    core._lower_as_gpu_kernel = spy
    return sizes


def resources(log: str) -> list[dict]:
    """Kernels in the output of `ptxas -v`."""
    return [
        {"kernel": name, "registers": int(registers), "spill_bytes": int(stores) + int(loads)}
        for name, stores, loads, registers in KERNEL.findall(log)
    ]


def assemble(path: str) -> list[dict]:
    """Kernels of a PTX file, with the number of tensor-core instructions of each kind."""
    text = Path(path).read_text(errors="replace")
    if ".entry" not in text:
        return []
    command = [ptxas(), "-v", "-arch=sm_90a", path, "-o", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count = {
        "wgmma": len(re.findall(r"wgmma\.mma_async", text)),
        "mma": len(re.findall(r"\bmma\.sync", text)),
    }
    return [kernel | count for kernel in resources(done.stderr)]


def ptxas() -> str:
    """Newest installed assembler: an old one does not read the PTX of a newer compiler."""
    folders = [
        f"{d}/{p}"
        for d in site.getsitepackages()
        for p in ("nvidia/*/bin", "triton/backends/nvidia/bin")
    ]
    found = [path for folder in folders for path in glob.glob(f"{folder}/ptxas")]
    if not found:
        raise SystemExit("no ptxas: pip install nvidia-cuda-nvcc")
    return found[0]


def inspect(case: tuple[str, str], blocks: str) -> dict:
    """Record of the kernels of one case, compiled in a process with its own dump folder."""
    implementation, shape = case
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as dump:
        flags = f"--xla_dump_to={dump} --xla_gpu_dump_llvmir=true --xla_dump_emitter_re=ptx"
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags,
            "JAX_TRITON_DUMP_DIR": dump,
        }
        environment |= {
            "MOSAIC_GPU_DUMP_PTXAS": "1",
            "PYTHONWARNINGS": "ignore",
            "PYTHONPATH": str(ROOT),
        }
        command = [
            sys.executable,
            "-m",
            "experiments.kernels.kernel_compile",
            f"--one={implementation}:{shape}",
            f"--blocks={blocks}",
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        record: dict = {
            "implementation": implementation,
            "shape": shape,
            "seconds": time.monotonic() - start,
        }
        if done.returncode:
            return record | {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
        record |= json.loads(done.stdout.splitlines()[-1])
        if implementation == "pallas_mosaic_gpu":  # its PTX is assembled inside the compile
            kernels = resources(done.stdout + done.stderr)
        else:
            kernels = [
                kernel
                for path in glob.glob(f"{dump}/**/*.ptx", recursive=True)
                for kernel in assemble(path)
            ]
        shared = record.pop("shared", {})
        for path in glob.glob(f"{dump}/*/*.compile_info"):  # of jax-triton
            name, _, size = Path(path).read_text().partition(": shared_mem_bytes: ")
            shared[name] = int(size)
        for path in glob.glob(f"{dump}/*.thunk_sequence.txt"):  # of XLA, for the Triton kernels
            shared |= {name: int(size) for name, size in THUNK.findall(Path(path).read_text())}
        # The rest is what XLA makes of the jnp code around the kernels.
        ours = [
            kernel
            for kernel in kernels
            if re.search("hstu|forward|backward|attend|gradient|d_|dq|dkv", kernel["kernel"])
        ]
        ours = [kernel for kernel in ours if not re.search("fusion|^wrapped", kernel["kernel"])]
    for kernel in ours:
        for name, size in shared.items():
            if kernel["kernel"].startswith(name):
                kernel["shared_bytes"] = size
    return (
        record
        if "skipped" in record
        else record | {"kernels": sorted(ours, key=lambda kernel: kernel["kernel"])}
    )


def missing(implementation: str) -> str:
    """Packages to install before compiling for a GPU, or an empty string."""
    packages = ["jax_cuda13_plugin"] + (
        ["jax_triton", "triton"] if implementation == "jax_triton" else []
    )
    absent = [name for name in packages if not importlib.util.find_spec(name)]
    return f"not installed: {', '.join(absent)}" if absent else ""


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--implementation", default=",".join(IMPLEMENTATIONS))
    parser.add_argument("--shape", default=",".join(SHAPES), help="names of pallas_kernels.specs")
    parser.add_argument(
        "--blocks", default="", help="comma-separated block sizes in place of the shipped ones"
    )
    parser.add_argument(
        "--json", default="", help="file for the results; default: results/, for a full run"
    )
    parser.add_argument("--jobs", type=int, default=1, help="compilations at the same time")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        compile_one(args.one.split(":")[0], args.one.split(":")[1], args.blocks)
        return 0
    cases = []
    for implementation in args.implementation.split(","):
        if reason := missing(implementation):
            print(f"{implementation}: skipped, {reason}")
        else:
            cases += [(implementation, shape) for shape in args.shape.split(",")]
    columns = f"{'registers':>9} {'spill':>7} {'shared':>7} {'wgmma':>6} {'mma':>6}"
    print(f"{'implementation':18} {'shape':22} {'kernel':34} {columns}")
    records, bad = [], 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for record in pool.map(functools.partial(inspect, blocks=args.blocks), cases):
            records.append(record)
            head = f"{record['implementation']:18} {record['shape']:22}"
            for reason in ("skipped", "error"):
                if reason in record:
                    print(f"{head} {reason}: {record[reason]}", flush=True)
            bad += "error" in record
            for kernel in record.get("kernels", []):
                bad += kernel["spill_bytes"] > 0
                counts = "".join(
                    f" {kernel.get(name, '-'):>{width}}"
                    for name, width in (("shared_bytes", 7), ("wgmma", 6), ("mma", 6))
                )
                print(
                    f"{head} {kernel['kernel'][:34]:34} {kernel['registers']:9}"
                    f" {kernel['spill_bytes']:7}{counts}",
                    flush=True,
                )
    full = (
        args.implementation == ",".join(IMPLEMENTATIONS)
        and args.shape == ",".join(SHAPES)
        and not args.blocks
    )
    path = Path(args.json) if args.json else RESULT if full else None
    if path:
        import jax

        about = {
            "command": command_line(),
            "jax": jax.__version__,
            "target": f"sm_90a, {DEVICE}, nothing was run",
        }
        keep(path, about | {"cases": records})
    if not collections.Counter("kernels" in record for record in records)[True]:
        print("no kernel was compiled", file=sys.stderr)
        return 1
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
