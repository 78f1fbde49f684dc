"""`/docs`: a reference page made from the OpenAPI description, in one file that needs nothing else."""

import re
from collections.abc import Iterator
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #1769aa; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
code { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .4rem 0; padding: .4rem .7rem }
summary { cursor: pointer } summary span { opacity: .75; margin-left: .6rem }
b.method { display: inline-block; min-width: 3.4rem; color: var(--accent) }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 }
td, th { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0; border-top: 1px solid var(--line) }
"""
_METHODS = ("get", "post", "put", "patch", "delete")


def reference_page(document: dict[str, Any]) -> str:
    """The page, HTML."""
    info = document["info"]
    head = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}: reference</title><style>{_STYLE}</style>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('summary', ''))} "
        '<a href="/openapi.json">openapi.json</a> is this page for programs.</p>'
    )
    return head + "".join(_operations(document)) + "".join(_schemas(document)) + "</html>"


def _operations(document: dict[str, Any]) -> Iterator[str]:
    by_tag: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method in _METHODS:
            if method in operations:
                operation = operations[method]
                tag = (operation.get("tags") or ["Other"])[0]
                by_tag.setdefault(tag, []).append(_operation(document, path, method, operation))
    for tag, shown in by_tag.items():
        yield f"<h2>{escape(tag[:1].upper() + tag[1:])}</h2>{''.join(shown)}"


def _operation(document: dict[str, Any], path: str, method: str, operation: dict[str, Any]) -> str:
    rows = []
    for parameter in operation.get("parameters", ()):
        known = _resolved(document, parameter)
        rows.append((known["name"], _kind(known.get("schema", {})), known.get("description", "")))
    parts = [f"<p>{_prose(operation.get('description', ''))}</p>"] if operation.get("description") else []
    if rows:
        parts.append(_table(("Parameter", "Type", ""), rows))
    if "requestBody" in operation:
        (content,) = list(operation["requestBody"]["content"].values())[:1]
        parts.append(f"<p>Send a document: {_kind(content.get('schema', {}))}</p>")
    answers = [
        (status, _kind(_content(response)), response.get("description", ""))
        for status, response in operation.get("responses", {}).items()
    ]
    parts.append(_table(("Answer", "Content", ""), answers))
    return (
        f'<details><summary><b class="method">{method.upper()}</b><code>{escape(path)}</code>'
        f"<span>{_prose(operation.get('summary', ''))}</span></summary>{''.join(parts)}</details>"
    )


def _schemas(document: dict[str, Any]) -> Iterator[str]:
    yield "<h2>Documents</h2>"
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        required = set(schema.get("required", ()))
        rows = [
            (key, f"{_kind(of)}{' (always)' if key in required else ''}", of.get("description", ""))
            for key, of in schema.get("properties", {}).items()
        ]
        about = f"<p>{_prose(schema.get('description', ''))}</p>"
        yield (
            f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>{about}'
            f"{_table(('Property', 'Type', ''), rows)}</details>"
        )


def _table(head: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{kind}<td>{_prose(about)}" for name, kind, about in rows
    )
    return f"<table><tr>{''.join(f'<th>{cell}' for cell in head)}{cells}</table>"


def _kind(schema: dict[str, Any]) -> str:
    """What a schema is, in a few words of HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "prefixItems" in schema:
        return f"[{', '.join(_kind(one) for one in schema['prefixItems'])}]"
    if schema.get("type") == "array":
        return f"array of {_kind(schema.get('items', {}))}"
    if "value" in schema.get("properties", {}):
        return f"a page: {_kind(schema['properties']['value'])}"
    kind = schema.get("type", "any JSON" if schema else "")
    return escape(" or ".join(kind) if isinstance(kind, list) else kind)


def _content(response: dict[str, Any]) -> dict[str, Any]:
    for content in response.get("content", {}).values():
        schema: dict[str, Any] = content.get("schema", {})
        return schema
    return {}


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    found: Any = document
    for part in schema["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    resolved: dict[str, Any] = found
    return resolved


def _prose(text: str) -> str:
    """Text with its `code`."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
