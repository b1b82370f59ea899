from gr_jax.training import console


def test_a_table_has_aligned_columns():
    text = console.table([("metric", "test"), ("hr@10", "0.5"), ("mrr", "0.25")])
    assert text.splitlines() == ["metric  test", "------------", "hr@10    0.5", "mrr     0.25"]
