from gr_jax.reporting import page
from gr_jax.reporting.learned import Sample
from gr_jax.reporting.tables import Table


def test_titles_are_text_and_not_html():
    sample = Sample(
        "<u>",
        3,
        (("2000-01-01 00:00", "Tom & <b>Jerry</b>"),),
        "x",
        "",
        ("score",),
        (("<i>", "0.5"),),
        0,
    )
    shown = page.users([sample])
    assert (
        "Tom &amp; &lt;b&gt;Jerry&lt;/b&gt;" in shown
        and "user &lt;u&gt;" in shown
        and "<i>" not in shown
    )
    assert "<tr class=hit>" in shown


def test_the_best_value_is_marked_in_its_cell():
    shown = page.table(Table(("run", "hr@10"), (("a", ".1"), ("b", ".2")), 1, frozenset({(1, 1)})))
    assert '<td class="best">.2</td>' in shown and shown.count("best") == 1


def test_sections_without_content_are_left_out():
    shown = page.page("t", [("full", ["<p>x</p>"]), ("empty", [])])
    assert "<h2>full</h2>" in shown and "empty" not in shown
