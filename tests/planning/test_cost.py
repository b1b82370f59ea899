from gr_jax.planning.cost import executed_flops
from tests.planning.small import small


def test_swiglu_adds_three_passes_of_its_products_and_its_hidden_values_once_more():
    config, sizes = small(num_blocks=3)
    wide, _ = small(num_blocks=3, swiglu_width=24)
    products = 2 * 32 * 24  # of a token, each
    added = executed_flops(wide, sizes) - executed_flops(config, sizes)
    assert added == 3 * sizes.tokens * (3 * 3 + 2) * products
