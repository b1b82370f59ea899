"""Hooks of the documentation's build: the table of config fields, written from their source.

`<!-- config fields -->` in a page becomes a heading and a table for each group of fields.
"""

from __future__ import annotations

import dataclasses
import inspect
from html import escape
from typing import Any

from gr_jax.config import Config
from gr_jax.config.overrides import comments

MARK = "<!-- config fields -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page's Markdown with the tables in place of the mark; called by MkDocs."""
    return markdown.replace(MARK, config_fields()) if MARK in markdown else markdown


def config_fields() -> str:
    """Name, type, default and meaning of every config field, in Markdown, a table a group."""
    return "\n\n".join(_group(Config(), ""))


def _group(group: Any, prefix: str) -> list[str]:
    about, rows, nested = comments(group), [], []
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            nested += _group(value, f"{prefix}{field.name}.")
            continue
        shown = "`TENSOR`" if field.name == "rules" else f"`{value!r}`"
        cells = (
            f"`{prefix}{field.name}`",
            f"`{field.type}`",
            shown,
            escape(about[field.name], quote=False),
        )
        rows.append(" | ".join(cell.replace("|", r"\|") for cell in cells))

    title = f"### {prefix.rstrip('.') or 'config'}"
    head = ["field | type | default | meaning", "--- | --- | --- | ---"]
    return [title, inspect.getdoc(type(group)) or "", "\n".join(head + rows), *nested]
