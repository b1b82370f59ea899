"""What a training run needs, before it is started: memory, FLOPs, bytes exchanged and step time, with their formulas.

    python -m gr_jax.plan --config=configs/ml_1m.py --devices=1 --device=h100 --items=3706 --mean_length=165
    python -m gr_jax.plan --config=configs/amazon.py:trillion --devices=256 --device=h100

No data need be there: --items and --mean_length, or a config with data.source="synthetic", tell the sizes. The exit
code is 1 when a step does not fit. Of model kinds other than hstu --compile tells the memory alone. Times are those of
peak rates, a bound and no prediction of what a kernel reaches: set the rates that you measured.
"""

from __future__ import annotations

import dataclasses
import json

import jax

from gr_jax import cli
from gr_jax.config import Config, ConfigError
from gr_jax.hardware import DEVICES, GIB, Device, this_cpu
from gr_jax.planning import compiled_step, memory
from gr_jax.planning.from_data import sizes_of
from gr_jax.planning.plan import USABLE, Plan, make_plan, mesh_shape, remedies
from gr_jax.planning.sizes import Sizes
from gr_jax.training import sharding
from gr_jax.training.console import table

RATES = {  # flag -> (field of Device, bytes or FLOPs of its unit, help)
    "bf16_tflops": ("bf16_flops", 1e12, "dense bfloat16 rate of a device in TFLOP/s"),
    "f32_tflops": ("f32_flops", 1e12, "dense float32 (TF32) rate in TFLOP/s"),
    "memory_gb": ("memory", 1e9, "memory of a device in GB (10^9 bytes)"),
    "memory_gbs": ("bandwidth", 1e9, "bandwidth of that memory in GB/s"),
    "link_gbs": ("link", 1e9, "bandwidth between devices of a node, one direction, in GB/s"),
    "network_gbs": ("network", 1e9, "a device's bandwidth to other nodes, one direction, in GB/s"),
}
FLAGS: dict[str, cli.Flag] = {
    "devices": (int, cli.REQUIRED, "how many devices"),
    "device": ((*DEVICES, "cpu"), "h100", "which"),
    "items": (int, 0, "items of the catalogue; 0 = those of the data"),
    "mean_length": (float, 0.0, "mean events of a history; 0 = that of the data"),
    "json": (bool, False, "print JSON instead of tables"),
    "compile": (
        bool,
        False,
        "compile the step for so many CPU devices, and show what XLA allocates beside the plan",
    ),
} | {name: (float, 0.0, f"{about}; 0 = data sheet") for name, (_, _, about) in RATES.items()}


def main(argv: list[str]) -> int:
    """Prints the plan; 0 if it fits, 1 if not."""
    args = cli.parse(argv, doc=__doc__, flags=FLAGS, config="required")
    if args.devices < 1:
        raise ConfigError(f"--devices={args.devices}: must be at least 1")
    if args.compile:
        jax.config.update("jax_num_cpu_devices", args.devices)
    device = this_cpu(args.devices) if args.device == "cpu" else DEVICES[args.device]
    given = {
        field: getattr(args, name) * unit
        for name, (field, unit, _) in RATES.items()
        if getattr(args, name)
    }
    device = dataclasses.replace(device, **given)
    if args.config.model.kind == "dlrm":
        raise ConfigError(
            "config.model.kind='dlrm': only steps of sequence models can be planned, not of impressions"
        )
    data, model = mesh_shape(args.config, args.devices)
    sizes = sizes_of(
        args.config, items=args.items, mean_length=args.mean_length, device_multiple=data
    )
    if args.compile and not memory.knows(args.config):
        found = compile_here(args.config, sizes, data, model)
        fits = found["peak"] <= USABLE * device.memory
        about = about_json(sizes, device, data, model) | {"fits": fits, "compiled": found}
        print(
            json.dumps(about, indent=2)
            if args.json
            else compiled_alone(args.config, sizes, device, found)
        )
        return 0 if fits else 1
    plan = make_plan(args.config, sizes, device, data=data, model=model)
    fits = plan.bytes <= USABLE * device.memory
    ways = [] if fits else remedies(args.config, sizes, device, plan)
    found = compile_here(args.config, sizes, data, model) if args.compile else None
    if args.json:
        print(json.dumps(as_json(plan, sizes, device, ways, found), indent=2))
    else:
        print(as_text(args.config, plan, sizes, device, ways, found))
    return 0 if fits else 1


def compile_here(config: Config, sizes: Sizes, data: int, model: int) -> dict:
    """What XLA allocates on each of data x model virtual CPU devices, and which collectives it makes."""
    mesh = sharding.make_mesh(dataclasses.replace(config.mesh, data=data, model=model))
    executable = compiled_step.compile_step(config, sizes, mesh)
    traffic = compiled_step.collectives(executable, data * model)
    return compiled_step.allocated(executable) | {
        "collectives": [dataclasses.asdict(c) for c in traffic]
    }


def about_json(sizes: Sizes, device: Device, data: int, model: int) -> dict:
    """What the plan is of, as plain values."""
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


def as_json(plan: Plan, sizes: Sizes, device: Device, ways: list, found: dict | None) -> dict:
    """The plan as plain values: bytes, FLOPs and seconds."""
    return about_json(sizes, device, plan.data, plan.model) | {
        "parameters": plan.parameters,
        "table_parameters": plan.table_parameters,
        "memory": [dataclasses.asdict(part) for part in plan.parts],
        "memory_bytes": plan.bytes,
        "fits": plan.bytes <= USABLE * device.memory,
        "remedies": [{"change": name, "memory_bytes": need} for name, need in ways],
        "model_flops": plan.cost.model_flops,
        "terms": [dataclasses.asdict(term) | {"seconds": term.seconds} for term in plan.cost.terms],
        "collectives": [dataclasses.asdict(x) | {"wire": x.wire} for x in plan.exchanges],
        "step_seconds": plan.cost.seconds,
        "overlapped_step_seconds": plan.cost.overlapped_seconds,
        "mfu": plan.cost.utilisation(plan.devices),
        "compiled": found,
    }


def as_text(
    config: Config, plan: Plan, sizes: Sizes, device: Device, ways: list, found: dict | None
) -> str:
    """The plan as tables."""
    limit, cost = USABLE * device.memory, plan.cost
    fill = sizes.real_tokens / sizes.tokens
    lines = [
        f"model    {plan.parameters:,} parameters, {plan.table_parameters / plan.parameters:.2%} of them in tables",
        f"sizes    {sizes.source}",
        f"batch    {sizes.users_per_batch:,.0f} users in {sizes.batch_rows:,} rows of {sizes.row_length:,} tokens,"
        f" {fill:.1%} of them real",
        f"devices  {plan.devices} {device.name} (data {plan.data} x model {plan.model}); {device.source}",
        "",
        "Memory of a device",
        table([
            ("use", "GiB", "formula (bytes)"),
            *((part.what, f"{part.bytes / GIB:,.3f}", part.formula) for part in plan.parts),
            ("in all", f"{plan.bytes / GIB:,.3f}", f"of {limit / GIB:,.1f} = {USABLE:g} x {device.memory / GIB:,.1f}"),
        ], left=(0, 2)),
        "Letters: T tokens of a device, D width, X rows of the item table on it, d x m the mesh, n = d m devices;"
        " of XLA's attention W keys in the windows of its chunks, S pairs of a query and a key there.",
        "",
        "Bytes exchanged in a step",
        table([
            ("what", "kind", "devices", "payload MB", "sent by each MB", "formula (payload; T of the global batch)"),
            *(
                (x.what, x.kind, f"{x.devices}", f"{x.payload / 1e6:,.2f}", f"{x.wire / 1e6:,.2f}", x.formula)
                for x in plan.exchanges
            ),
        ], left=(0, 1, 5)) if plan.exchanges else "none: one device",
        "",
        "Time of a step at peak rates (a roofline)",
        table([
            ("term", "amount", "rate", "ms", "formula"),
            *(
                (t.what, f"{t.amount:.4g}", f"{t.rate:.4g}/s", f"{1e3 * t.seconds:,.3f}", t.formula)
                for t in cost.terms
            ),
            ("step", "", "", f"{1e3 * cost.seconds:,.3f}", "max(compute, memory) + links: communication waits"),
            ("", "", "", f"{1e3 * cost.overlapped_seconds:,.3f}", "max of all: everything overlaps"),
        ], left=(0, 4)),
        f"users    {sizes.users_per_batch / cost.seconds:,.0f} a second",
        f"FLOPs    {cost.model_flops:.4g} a step of the mathematics on real tokens, all devices together",
        f"MFU      {cost.utilisation(plan.devices):.1%} = FLOPs / (step x {plan.devices} devices x"
        f" {cost.terms[0].rate:.4g} FLOP/s in {config.model.compute_dtype})",
    ]  # fmt: skip
    if found:
        lines += [
            "",
            f"{allocated_text(found)}; the plan is {plan.bytes / found['peak'] - 1:+.1%} of that",
        ]
    lines += ["", verdict(plan.bytes, device)]
    if plan.bytes > limit:
        lines[-1] += " Each alone:"
        lines += [
            f"  {need / GIB:9,.1f} GiB  {'fits ' if need <= limit else 'not yet'}  {name}"
            for name, need in ways
        ]
    return "\n".join(lines)


def compiled_alone(config: Config, sizes: Sizes, device: Device, found: dict) -> str:
    """What XLA allocates for a kind of model that the formulas do not know."""
    return "\n".join([
        f"sizes    {sizes.source}",
        f"{allocated_text(found)}; no plan beside it: the formulas do not know model.kind={config.model.kind}",
        "",
        verdict(float(found["peak"]), device),
    ])  # fmt: skip


def allocated_text(found: dict) -> str:
    """What `compile_here` found of memory."""
    peak, argument, temp = (f"{found[name] / GIB:,.3f}" for name in ("peak", "argument", "temp"))
    return f"compiled {peak} GiB on a virtual CPU device: arguments {argument}, temporaries {temp}"


def verdict(need: float, device: Device) -> str:
    """Whether so many bytes fit."""
    limit = USABLE * device.memory
    if need <= limit:
        return f"It fits: {need / device.memory:.1%} of a device's memory."
    return f"It does not fit: {need / GIB:,.1f} GiB of {limit / GIB:,.1f}."


if __name__ == "__main__":
    cli.run(main)
