"""Docstrings name classes and functions as Sphinx does; on the site only the name is shown."""

from __future__ import annotations

import re
from typing import Any

_ROLE = re.compile(r":(?:class|meth|func|attr|data|mod):\s*<code>~?([^<]*)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """A page without the markup of roles; of a full path behind a tilde only the last name."""
    return _ROLE.sub(lambda m: f"<code>{m[1].rsplit('.', 1)[-1] if '~' in m[0] else m[1]}</code>", html)
