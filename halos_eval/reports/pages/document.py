"""One HTML page: a template, filled with escaped values, under a strict Content-Security-Policy."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:"
"""Policy of all pages. Style and script are added by digest, so that nothing else in a page is executed or applied."""
# What would end a <script> element, or begin a comment in it, inside of JSON.
_IN_SCRIPT = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})
# Browsers reject NUL and lone surrogates, and control characters such as that for right-to-left text reorder the page.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def render(template: str, script: str = "", more_style: str = "", **values: Any) -> bytes:
    """Return a page in UTF-8. ``script`` and ``more_style`` are this project's, never made from data."""
    style = _read("style.css") + more_style
    policy = f"{POLICY}; style-src {_allowed(style)}" + (f"; script-src {_allowed(script)}" if script else "")
    text = _environment().get_template(template).render(
        policy=policy, style=Markup(style), script=Markup(script), **values  # noqa: S704 (not made from data)
    )  # fmt: skip
    return text.encode()


def shown(text: Any) -> str:
    """Return the text of a stranger with a visible sign in place of each character that no page can show."""
    return _UNSEEN.sub("\ufffd", str(text))


def data(document: Any) -> Markup:
    """Return JSON for a <script type="application/json">; it can not end the element."""
    text = json.dumps(_visible(document), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(_IN_SCRIPT))  # noqa: S704 (escaped here)


def _visible(value: Any) -> Any:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, list | tuple):
        return [_visible(one) for one in value]
    return {key: _visible(one) for key, one in value.items()} if isinstance(value, dict) else value


def _allowed(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"


@cache
def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


@cache
def table_script() -> tuple[str, str]:
    """Return the script and the style of tables that sort and filter: DataTables (MIT), which itables bundles."""
    found = find_spec("itables")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("itables is not installed; install the requirements of the image judge")
    folder = Path(found.submodule_search_locations[0], "html")  # not imported: it would load pandas
    bundle = (folder / "dt_bundle.js").read_text(encoding="utf-8")
    style = (folder / "dt_bundle.css").read_text(encoding="utf-8")
    # A module exports its names at its end. The page is one module, so it uses the bundle's own name.
    exported = re.search(r"export\s*\{[^}]*?([\w$]+) as ITable[^}]*\}", bundle)
    if exported is None:
        raise RuntimeError("itables has another bundle than expected; install the version of the lock")
    # These begin or end a script in HTML. In the bundle they are parts of strings and patterns.
    for mark, same in {"<!--": "<\\!--", "<script": "\\x3cscript", "</script": "\\x3c/script"}.items():
        bundle = bundle.replace(mark, same)
    return f"{bundle}\nconst ITable = {exported[1]};\n{_read('leaderboard.js')}", style


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["shown"] = shown
    return environment
