"""Pages for people: Jinja templates beside this file, filled in and written whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2


def write_page(folder: Path, template: str, content: Mapping[str, Any]) -> Path:
    """Writes `folder/report.html` and returns its path. All text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("r1jax.evaluation", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    partial = folder / "report.html.partial"
    partial.write_text(environment.get_template(template).render(content), encoding="utf-8")
    os.replace(partial, folder / "report.html")
    return folder / "report.html"
