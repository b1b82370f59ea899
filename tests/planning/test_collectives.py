import pytest

from gr_jax.config import MeshConfig
from gr_jax.planning import collectives, compiled_step
from gr_jax.training import sharding
from tests.planning.small import small


def by_kind(pairs):
    return {kind: sum(size for k, size in pairs if k == kind) for kind, _ in pairs}


@pytest.mark.parametrize("data, model", [(8, 1), (4, 2)])
def test_planned_bytes_are_those_of_the_compiled_program(data, model):
    config, sizes = small(mesh=MeshConfig(data=data, model=model))
    mesh = sharding.make_mesh(config.mesh)
    made = compiled_step.collectives(compiled_step.compile_step(config, sizes, mesh), data * model)
    found = by_kind([(c.kind, c.payload * c.times) for c in made])
    state = compiled_step.abstract_state(config, sizes, mesh)
    planned = by_kind(
        [(x.kind, x.payload) for x in collectives.exchanges(config, sizes, state, platform="cpu")]
    )
    assert set(planned) == set(found)
    for kind in planned:
        assert planned[kind] == pytest.approx(found[kind], rel=0.05), kind


def test_one_device_exchanges_nothing():
    config, sizes = small()
    state = compiled_step.abstract_state(config, sizes, sharding.make_mesh(config.mesh))
    assert collectives.exchanges(config, sizes, state, platform="cpu") == ()
