from gr_jax.training import console


def test_a_table_has_aligned_columns():
    text = console.table([("metric", "test"), ("hr@10", "0.5"), ("mrr", "0.25")])
    assert text.splitlines() == ["metric  test", "------------", "hr@10    0.5", "mrr     0.25"]


def test_a_model_that_does_not_beat_its_best_baseline_is_told_so():
    baselines = {"popularity": {"ndcg@10": 0.04}, "item-kNN": {"ndcg@10": 0.06}}
    test = {"ndcg@10": 0.063, "ndcg@10/se": 0.004}
    line = console.not_beaten_line(test, baselines)
    assert line.startswith(
        "the model does not beat item-kNN: ndcg@10 0.0630 ±0.0040 against 0.0600"
    )
    assert console.not_beaten_line(test | {"ndcg@10": 0.065}, baselines) == ""

    rates = {"constant rate": {"ne": 1.0}, "regression on counts": {"ne": 0.9}}
    assert console.not_beaten_line({"ne": 0.89}, rates) == ""
    assert "regression on counts: ne 0.9100 against 0.9000" in console.not_beaten_line(
        {"ne": 0.91}, rates
    )
    assert console.not_beaten_line({}, {"constant rate": {}}) == ""
