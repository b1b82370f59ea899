"""The tables in README.md, docs/ and experiments/ are what experiments/results holds."""

from experiments import tables


def test_every_table_is_up_to_date():
    assert tables.outdated() == [], "run python -m experiments.tables"


def test_a_figure_changed_by_hand_is_found():
    text = (tables.ROOT / "README.md").read_text()
    changed = text.replace(".1975", ".1985")
    assert changed != text and tables.filled(changed) == text


def test_every_table_is_used():
    text = "".join(page.read_text() for page in tables.PAGES)
    assert {name for _, name, *_ in tables.MARKED.findall(text)} == set(tables.TABLES)


def test_figures_have_four_digits_and_no_leading_zero():
    assert [tables.figure(value) for value in (0.33427, 1.0034, 0.1)] == [
        ".3343",
        "1.0034",
        ".1000",
    ]
