"""The page at /docs: the OpenAPI document as HTML, without scripts and without outside assets."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Iterator
from typing import Any

_STYLE = """
  :root { color-scheme: light dark; }
  body { margin: 0 auto; max-width: 52rem; padding: 1.5rem 1rem 4rem; }
  body { font: 16px/1.45 system-ui, sans-serif; }
  h2 { margin: 2.5rem 0 .25rem; font-size: 1.1rem; } h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
  table { border-collapse: collapse; } td { padding: .15rem .8rem .15rem 0; vertical-align: top; }
  pre { background: #8882; padding: .6rem; overflow: auto; }
"""


def page(document: dict[str, Any]) -> str:
    """HTML of an OpenAPI document: paths, fields and their meaning, answers, examples for curl."""
    title = html.escape(f"{document['info']['title']} {document['info']['version']}")
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head>\n<body><h1>{title}</h1>',
        f"<p>{html.escape(document['info'].get('summary', ''))} The same for programs:",
        '<a href="openapi.json">openapi.json</a>.</p>',
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts += _operation(document, path, method, operation)
    return "\n".join([*parts, "</body></html>\n"])


def _operation(document: dict, path: str, method: str, operation: dict) -> Iterator[str]:
    yield f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>"
    yield f"<p>{html.escape(operation.get('description', ''))}</p>"
    fields = [
        (p["name"], p["schema"] | {"description": p.get("description", "")}, p.get("required"))
        for p in operation.get("parameters", ())
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if body:
        fields += _fields(document, body["schema"])
    if fields:
        yield "<h3>Request</h3>"
        yield _table((_name(name, needed), _kind(document, s), s) for name, s, needed in fields)
    yield "<h3>Answers</h3>"
    answers = operation["responses"]
    yield _rows((code, answer.get("description", "")) for code, answer in answers.items())
    for answer in answers.values():
        schema = answer.get("content", {}).get("application/json", {}).get("schema")
        if schema:
            yield _table((n, _kind(document, s), s) for n, s, _ in _fields(document, schema))
            break
    for example in body.get("examples", {}).values():
        yield f"<h3>{html.escape(example['summary'])}</h3>"
        command = f"curl -s localhost:8000{path} -H 'content-type: application/json' \\\n  -d "
        yield f"<pre>{html.escape(command + shlex.quote(json.dumps(example['value'])))}</pre>"


def _fields(document: dict, schema: dict, prefix: str = "") -> list[tuple[str, dict, bool]]:
    """Name, schema and whether it is required, of the members of an object and of its lists."""
    found = []
    schema = _resolved(document, schema)
    for name, field in schema.get("properties", {}).items():
        found.append((f"{prefix}{name}", field, name in schema.get("required", ())))
        for choice in (field, *field.get("anyOf", ())):
            item = _resolved(document, choice.get("items", {}))
            found += _fields(document, item, f"{prefix}{name}[].") if "properties" in item else []
    return found


def _resolved(document: dict, schema: dict) -> dict:
    if "$ref" not in schema:
        return schema
    return document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]


def _kind(document: dict, schema: dict) -> str:
    """The type of a field in words."""
    schema = _resolved(document, schema)
    if "anyOf" in schema:
        kinds = [_kind(document, choice) for choice in schema["anyOf"]]
        return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))
    if "enum" in schema or "const" in schema:
        return " or ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    if "items" in schema:
        return f"list of {_kind(document, schema['items'])}"
    return schema.get("format", schema.get("type", ""))


def _name(name: str, is_required: bool | None) -> str:
    return f"{name} (required)" if is_required else name


def _table(fields: Any) -> str:
    return _rows((name, kind, schema.get("description", "")) for name, kind, schema in fields)


def _rows(rows: Any) -> str:
    cells = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
