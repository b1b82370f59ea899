"""The report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from gr_jax.reporting.curves import Figure
from gr_jax.reporting.learned import Sample
from gr_jax.reporting.tables import Table

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1120px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; }
p.note { color: #666; margin: .2rem 0 .8rem; font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; margin: .4rem 0; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #eee;
  font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid #ccc; white-space: nowrap; }
th.word, td.word { text-align: left; overflow-wrap: anywhere; min-width: 4.5rem; }
td { white-space: nowrap; } td.word { white-space: normal; }
td.best { font-weight: 700; }
svg { max-width: 100%; height: auto; }
.figures { display: flex; flex-wrap: wrap; gap: 0 2rem; } .figures p.note { max-width: 24rem; }
.figures > div { max-width: 100%; overflow-x: auto; }
@media (max-width: 600px) { .figures svg { max-width: none; } }
.users { display: grid; grid-template-columns: repeat(auto-fit, minmax(310px, 1fr)); gap: 1rem; }
.user { border: 1px solid #ddd; border-radius: 6px; padding: .6rem .9rem; font-size: .85rem; }
.user table { width: 100%; font-size: inherit; }
.user h4 { margin: .2rem 0; } .user p { margin: .4rem 0; }
.user ol { padding-left: 0; list-style: none; margin: .2rem 0; }
.user time { color: #888; margin-right: .5rem; }
tr.hit td { background: #e4f4e4; }
"""


def page(title: str, sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A page of sections, each a heading and its HTML; those without any are left out."""
    body = "\n".join(
        f"<h2>{escape(name)}</h2>\n" + "\n".join(parts) for name, parts in sections if parts
    )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n<h1>{escape(title)}</h1>\n{body}\n</html>\n"
    )


def note(text: str) -> str:
    """A line of small print."""
    return f'<p class="note">{escape(text)}</p>'


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(text)}</h3>"


def table(data: Table) -> str:
    """A table with its best values in bold."""

    def row(cells: Sequence[str], tag: str, number: int) -> str:
        out = ""
        for column, cell in enumerate(cells):
            names = [
                *["word"] * (column < data.labels),
                *["best"] * ((number, column) in data.best),
            ]
            kind = f' class="{" ".join(names)}"' if names else ""
            out += f"<{tag}{kind}>{escape(cell)}</{tag}>"
        return f"<tr>{out}</tr>"

    rows = [row(data.head, "th", -1), *(row(cells, "td", i) for i, cells in enumerate(data.rows))]
    return '<div class="wide"><table>\n' + "\n".join(rows) + "\n</table></div>"


def figures(drawings: Sequence[Figure]) -> str:
    """Drawings with their titles and captions, side by side where there is room."""
    shown = (
        f"<div>\n{heading(drawn.title)}\n{note(drawn.caption)}\n{drawn.svg}\n</div>"
        for drawn in drawings
    )
    return '<div class="figures">\n' + "\n".join(shown) + "\n</div>"


def users(samples: Sequence[Sample]) -> str:
    """Recommendations for some users, side by side."""
    return '<div class="users">\n' + "\n".join(map(_user, samples)) + "\n</div>"


def _user(sample: Sample) -> str:
    past = "".join(
        f"<li><time>{escape(when)}</time>{escape(what)}</li>" for when, what in sample.past
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in sample.head)
    rows = ""
    for place, (title, *numbers) in enumerate(sample.items):
        cells = f'<td class="word">{escape(title)}</td>' + "".join(
            f"<td>{escape(n)}</td>" for n in numbers
        )
        rows += f"<tr{' class=hit' if place == sample.hit else ''}>{cells}</tr>"
    outcome = f" <em>({escape(sample.outcome)})</em>" if sample.outcome else ""
    return (
        f'<div class="user"><h4>user {escape(sample.user)}, {sample.events:,} events</h4>\n'
        f"<ol>{past}</ol>\n"
        f"<p>Came next: <strong>{escape(sample.came)}</strong>{outcome}</p>\n"
        f'<table><tr><th class="word">recommended for that moment</th>{head}</tr>'
        f"{rows}</table></div>"
    )
