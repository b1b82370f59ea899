from gr_jax.planning.hlo import collectives, wire_bytes

# ruff: noqa: E501 - lines of a compiled program
PROGRAM = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %x = f32[2,4]{1,0} get-tuple-element(%p), index=1
  %g = f32[8,4]{1,0} all-gather(f32[2,4]{1,0} %x), replica_groups=[2,4]<=[8], dimensions={0}
}

%cond (p: (s32[], f32[8,4])) -> pred[] {
  ROOT %c = pred[] constant(true)
}

ENTRY %main (p0: f32[4]) -> f32[4] {
  %w = (s32[], f32[8,4]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %r = (bf16[16]{0}, f32[3]{0}) all-reduce(bf16[16]{0} %a, f32[3]{0} %b), replica_groups={{0,1},{2,3}}, to_apply=%add
  %s = (f32[2]{0}, f32[16]{0}) all-gather-start(f32[2]{0} %a), replica_groups={}, dimensions={0}
  %v = ((f32[16]{0}), f32[2]{0}) reduce-scatter-start(f32[16]{0} %b), replica_groups=[1,8]<=[8], to_apply=%add
  %q = f32[2]{0} reduce-scatter(f32[16]{0} %b), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}
"""


def test_collectives_are_found_with_their_group_bytes_and_number_of_runs():
    found = {(c.kind, c.shape): (c.devices, c.payload, c.times) for c in collectives(PROGRAM, 8)}
    assert found == {
        ("all-gather", "f32[8,4]"): (4, 128.0, 5),
        ("all-reduce", "bf16[16] f32[3]"): (2, 44.0, 1),
        ("all-gather", "f32[16]"): (8, 64.0, 1),
        ("reduce-scatter", "f32[2]"): (8, 64.0, 2),  # as an operation, and as one that is begun
    }


def test_an_all_reduce_sends_what_a_reduce_scatter_and_an_all_gather_do():
    parts = wire_bytes("reduce-scatter", 1000.0, 8) + wire_bytes("all-gather", 1000.0, 8)
    assert wire_bytes("all-reduce", 1000.0, 8) == parts == 1750.0


def test_groups_may_be_named_by_axes_of_a_mesh():
    program = """ENTRY %main (p0: f32[4]) -> f32[4] {
  %a = f32[2]{0} reduce-scatter(f32[8]{0} %x), replica_groups=mesh['data'=4,'model'=2] {'data'}, to_apply=%add
  %b = f32[3]{0} all-reduce(f32[3]{0} %y), replica_groups=mesh['data'=4,'model'=2] {'data','model'}, to_apply=%add
}
"""
    assert [(c.kind, c.devices, c.payload) for c in collectives(program, 8)] == [
        ("reduce-scatter", 4, 32.0),
        ("all-reduce", 8, 12.0),
    ]
