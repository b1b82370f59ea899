"""Needs of a training run before it is started: memory, FLOPs, bytes exchanged and step time.

    python -m gr_jax.plan --config=configs/ml_1m.py --devices=1 --device=h100 --items=3706 \\
        --mean_length=165
    python -m gr_jax.plan --config=configs/amazon.py:trillion --devices=256 --device=h100

No data are needed: --items and --mean_length, or a config with data.source="synthetic", give the
sizes. The exit code is 1 when a step does not fit.

Parameters, optimizer state and batch are exact. Activations and gradients of a GPU follow the
formulas that are printed; they know hstu without SwiGLU. On a CPU (--device=cpu) the step is
compiled, which takes seconds to minutes, and XLA's buffer assignment gives the rest. --compile
compiles it for virtual CPU devices, where attention keeps its scores in memory, and shows the
result beside the plan of a GPU; of other kinds of model it shows that alone.

Times are those of peak rates: bounds, not predictions of what a kernel reaches. Set measured rates.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax

from gr_jax import cli
from gr_jax.config import Config, ConfigError
from gr_jax.hardware import DEVICES, GIB, Device, this_cpu
from gr_jax.planning import compiled_step, memory
from gr_jax.planning.estimate import USABLE, Plan, make_plan, mesh_shape, remedies
from gr_jax.planning.sizes import Sizes, sizes_of
from gr_jax.training import sharding
from gr_jax.training.console import table

Json = dict[str, Any]  # what --json prints, and parts of it
RATES = {  # flag -> (field of Device, bytes or FLOPs of its unit, help)
    "bf16_tflops": ("bf16_flops", 1e12, "dense bfloat16 rate of a device in TFLOP/s"),
    "f32_tflops": ("f32_flops", 1e12, "dense float32 (TF32) rate in TFLOP/s"),
    "memory_gb": ("memory", 1e9, "memory of a device in GB (10^9 bytes)"),
    "memory_gbs": ("bandwidth", 1e9, "bandwidth of that memory in GB/s"),
    "link_gbs": ("link", 1e9, "bandwidth between devices of a node, one direction, in GB/s"),
    "network_gbs": ("network", 1e9, "a device's bandwidth to other nodes, one direction, in GB/s"),
}
FLAGS: dict[str, cli.Flag] = {
    "devices": (int, cli.REQUIRED, "number of devices"),
    "device": ((*DEVICES, "cpu"), "h100", "kind of device; cpu = this machine, as virtual devices"),
    "items": (int, 0, "items of the catalogue; 0 = those of the data"),
    "mean_length": (float, 0.0, "mean events of a history; 0 = that of the data"),
    "json": (bool, False, "print JSON instead of tables"),
    "compile": (bool, False, "compile the step for virtual CPU devices; always on for a CPU"),
} | {name: (float, 0.0, f"{about}; 0 = data sheet") for name, (_, _, about) in RATES.items()}


def main(argv: list[str]) -> int:
    """Print the plan; 0 if it fits, 1 if not."""
    args = cli.parse(argv, doc=__doc__, flags=FLAGS, config="required")
    config: Config = args.config
    if args.devices < 1:
        raise ConfigError(f"--devices={args.devices}: must be at least 1")
    if config.model.kind == "dlrm":
        raise ConfigError(
            "config.model.kind='dlrm': only steps of sequence models can be planned,"
            " not of impressions"
        )

    # The devices
    on_cpu = args.device == "cpu"
    if args.compile or on_cpu:
        jax.config.update("jax_num_cpu_devices", args.devices)
    device = this_cpu(args.devices) if on_cpu else DEVICES[args.device]
    rates = {
        field: getattr(args, name) * unit
        for name, (field, unit, _) in RATES.items()
        if getattr(args, name)
    }
    device = dataclasses.replace(device, **rates)
    data, model = mesh_shape(config, args.devices)

    # The step
    sizes = sizes_of(config, items=args.items, mean_length=args.mean_length, shards=data)
    found = compile_here(config, sizes, data, model) if args.compile or on_cpu else None
    if found and not memory.knows(config):
        fits = found["peak"] <= USABLE * device.memory
        values = about_json(sizes, device, data, model) | {"fits": fits, "compiled": found}
        text = compiled_alone(config, sizes, device, found)
        print(json.dumps(values, indent=2) if args.json else text)
        return 0 if fits else 1

    peak = found["peak"] if found and on_cpu else None
    plan = make_plan(config, sizes, device, data=data, model=model, peak=peak)
    fits = plan.bytes <= USABLE * device.memory
    changes = [] if fits or on_cpu else remedies(config, sizes, device, plan)
    if args.json:
        print(json.dumps(as_json(plan, sizes, device, changes, found), indent=2))
    else:
        print(as_text(config, plan, sizes, device, changes, found))
    return 0 if fits else 1


def compile_here(config: Config, sizes: Sizes, data: int, model: int) -> Json:
    """Bytes that XLA allocates on each of data x model virtual CPU devices, and collectives."""
    mesh = sharding.make_mesh(dataclasses.replace(config.mesh, data=data, model=model))
    executable = compiled_step.compile_step(config, sizes, mesh)
    traffic = compiled_step.collectives(executable, data * model)
    collectives = [dataclasses.asdict(c) for c in traffic]
    return compiled_step.allocated(executable) | {"collectives": collectives}


def about_json(sizes: Sizes, device: Device, data: int, model: int) -> Json:
    """Devices and sizes of a plan as plain values."""
    return {
        "devices": data * model,
        "mesh": {"data": data, "model": model},
        "device": dataclasses.asdict(device),
        "sizes": {
            "source": sizes.source,
            "items": sizes.num_items,
            "batch_rows": sizes.batch_rows,
            "row_length": sizes.row_length,
            "users_per_batch": sizes.users_per_batch,
            "real_tokens": sizes.real_tokens,
            "pairs": sizes.pairs,
        },
    }


Changes = list[tuple[str, float]]  # see `remedies`


def as_json(plan: Plan, sizes: Sizes, device: Device, changes: Changes, found: Json | None) -> Json:
    """The plan as plain values: bytes, FLOPs and seconds."""
    return about_json(sizes, device, plan.data, plan.model) | {
        "parameters": plan.parameters,
        "table_parameters": plan.table_parameters,
        "memory": [dataclasses.asdict(part) for part in plan.parts],
        "memory_bytes": plan.bytes,
        "fits": plan.bytes <= USABLE * device.memory,
        "remedies": [{"change": name, "memory_bytes": need} for name, need in changes],
        "model_flops": plan.cost.model_flops,
        "terms": [dataclasses.asdict(term) | {"seconds": term.seconds} for term in plan.cost.terms],
        "collectives": [dataclasses.asdict(x) | {"wire": x.wire} for x in plan.exchanges],
        "step_seconds": plan.cost.seconds,
        "overlapped_step_seconds": plan.cost.overlapped_seconds,
        "mfu": plan.cost.utilisation(plan.devices),
        "compiled": found,
    }


def as_text(
    config: Config,
    plan: Plan,
    sizes: Sizes,
    device: Device,
    changes: Changes,
    found: Json | None,
) -> str:
    """The plan as tables."""
    lines = [*_heading(plan, sizes, device), "", *_memory(plan, device), "", *_traffic(plan)]
    lines += ["", *_time(config, plan, sizes)]
    if found:
        lines += ["", allocated_text(found)]
    lines += ["", verdict(plan.bytes, device)]
    if changes:
        limit = USABLE * device.memory
        lines[-1] += " Each alone:"
        lines += [
            f"  {need / GIB:9,.1f} GiB  {'fits ' if need <= limit else 'not yet'}  {name}"
            for name, need in changes
        ]
    return "\n".join(lines)


def _heading(plan: Plan, sizes: Sizes, device: Device) -> list[str]:
    share, fill = plan.table_parameters / plan.parameters, sizes.real_tokens / sizes.tokens
    return [
        f"model    {plan.parameters:,} parameters, {share:.2%} of them in tables",
        f"sizes    {sizes.source}",
        f"batch    {sizes.users_per_batch:,.0f} users in {sizes.batch_rows:,} rows of"
        f" {sizes.row_length:,} tokens, {fill:.1%} of them real",
        f"devices  {plan.devices} {device.name} (data {plan.data} x model {plan.model});"
        f" {device.source}",
    ]


def _memory(plan: Plan, device: Device) -> list[str]:
    limit = USABLE * device.memory / GIB
    total = f"of {limit:,.1f} = {USABLE:g} x {device.memory / GIB:,.1f}"
    rows = [
        ("use", "GiB", "formula (bytes)"),
        *((part.what, f"{part.bytes / GIB:,.3f}", part.formula) for part in plan.parts),
        ("in all", f"{plan.bytes / GIB:,.3f}", total),
    ]
    return [
        "Memory of a device",
        table(rows, left=(0, 2)),
        "Letters: T tokens of a device, D width, HV and HA widths of its heads together, s bytes of"
        " an activation,",
        "K negatives, X entries of its item table, d x m the mesh, n = d m devices.",
    ]


def _traffic(plan: Plan) -> list[str]:
    title = "Bytes exchanged in a step"
    if not plan.exchanges:
        return [title, "none: one device"]
    formula = "formula (payload; T of the global batch)"
    rows = [("what", "kind", "devices", "payload MB", "sent by each MB", formula)]
    for x in plan.exchanges:
        payload, sent = f"{x.payload / 1e6:,.2f}", f"{x.wire / 1e6:,.2f}"
        rows.append((x.what, x.kind, f"{x.devices}", payload, sent, x.formula))
    return [title, table(rows, left=(0, 1, 5))]


def _time(config: Config, plan: Plan, sizes: Sizes) -> list[str]:
    cost, rows = plan.cost, [("term", "amount", "rate", "ms", "formula")]
    for t in cost.terms:
        rate = f"{t.rate:.4g}/s"
        rows.append((t.what, f"{t.amount:.4g}", rate, f"{1e3 * t.seconds:,.3f}", t.formula))
    step = "max(compute, memory) + links: communication waits"
    rows.append(("step", "", "", f"{1e3 * cost.seconds:,.3f}", step))
    overlapped = f"{1e3 * cost.overlapped_seconds:,.3f}"
    rows.append(("", "", "", overlapped, "max of all: everything overlaps"))
    return [
        "Time of a step at peak rates (a roofline)",
        table(rows, left=(0, 4)),
        f"users    {sizes.users_per_batch / cost.seconds:,.0f} a second",
        f"FLOPs    {cost.model_flops:.4g} a step of the mathematics on real tokens, all devices"
        " together",
        f"MFU      {cost.utilisation(plan.devices):.1%} = FLOPs / (step x {plan.devices} devices x"
        f" {cost.terms[0].rate:.4g} FLOP/s in {config.model.compute_dtype})",
    ]


def compiled_alone(config: Config, sizes: Sizes, device: Device, found: Json) -> str:
    """The memory that XLA allocates for a kind of model that the formulas do not know."""
    kind = config.model.kind
    return "\n".join([
        f"sizes    {sizes.source}",
        f"{allocated_text(found)}; no plan beside it: the formulas do not know model.kind={kind}",
        "",
        verdict(float(found["peak"]), device),
    ])  # fmt: skip


def allocated_text(found: Json) -> str:
    """The memory that `compile_here` found."""
    peak, argument, temp = (f"{found[name] / GIB:,.3f}" for name in ("peak", "argument", "temp"))
    return f"compiled {peak} GiB on a virtual CPU device: arguments {argument}, temporaries {temp}"


def verdict(need: float, device: Device) -> str:
    """One sentence: the bytes fit a device, or not."""
    limit = USABLE * device.memory
    if need <= limit:
        return f"It fits: {need / device.memory:.1%} of a device's memory."
    return f"It does not fit: {need / GIB:,.1f} GiB of {limit / GIB:,.1f}."


if __name__ == "__main__":
    cli.run(main)
