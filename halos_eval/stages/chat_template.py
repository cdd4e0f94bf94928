"""Chat templates that ship with the package."""

from __future__ import annotations

from pathlib import Path

from halos_eval.errors import BadInput
from halos_eval.shipped import shipped
from halos_eval.storage import filesystem


def read_template(name: str | None) -> str | None:
    """Return the text of a chat template by its shipped name or its path; None for the checkpoint's own.

    Raise BadInput if the template does not exist, is empty or is not valid Jinja, and StoreError.
    """
    if name is None:
        return None
    from jinja2 import Environment, TemplateSyntaxError

    own = "/" in name or name.endswith(".jinja")
    url = name if own else str(shipped("templates") / f"{name}.jinja")
    try:
        text = filesystem.read_bytes(url).decode() if "://" in url else Path(url).read_text(encoding="utf-8")
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)  # noqa: S701 (parsed only; chat text is not HTML)
    except OSError as error:
        raise BadInput(f"chat template {name} not found; expected chatml or the path of a Jinja file") from error
    except (TemplateSyntaxError, UnicodeDecodeError) as error:
        raise BadInput(f"chat template {name} is not valid Jinja: {error}") from error
    if not text.strip():
        raise BadInput(
            f"chat template {name} is empty; expected a Jinja template. Leave it out for the checkpoint's own"
        )
    return text
