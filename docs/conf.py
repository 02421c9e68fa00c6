"""How `make docs` builds these pages: Sphinx, MyST for Markdown, furo for the looks. A warning is an error."""

from __future__ import annotations

import importlib
import re
from importlib.metadata import version as installed
from typing import Any

from sphinx.errors import ExtensionError

project = "durable"
author = "the authors of durable"
copyright = "the authors of durable"  # noqa: A001 -- Sphinx reads it by this name
release = version = installed("durable-postgres")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"durable {release}"

myst_heading_anchors = 3  # so that `steps.md#signals` is a link here as well as on a page of Markdown
default_role = "code"  # docstrings quote code as Markdown does, in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("OnVersionMismatch", "OnConflict")}
maximum_signature_line_length = 100
add_module_names = False

PUBLIC = ("durable", "durable.aio", "durable.errors", "durable.stores", "durable.testing", "durable.telemetry")

_FENCE = re.compile(r"^( *)```(\w*)$")


def _fences_as_blocks(*told: Any) -> None:
    """Docstrings show code between fences, as Markdown does; Sphinx reads them as reStructuredText."""
    lines: list[str] = told[-1]
    inside, told_lines = False, list[str]()
    for line in lines:
        fence = _FENCE.match(line)
        if fence is None:
            told_lines.append(f"    {line}" if inside else line)
        elif inside:
            inside = False
            told_lines.append("")
        else:
            inside = True
            told_lines += ["", f"{fence[1]}.. code-block:: {fence[2] or 'text'}", ""]
    lines[:] = told_lines


def _made_by_us(_: Any, what: str, name: str, *__: Any) -> tuple[str, None] | None:
    """How a store or a step is made is our business: users get theirs from a function."""
    hidden = what == "class" and name.rpartition(".")[2] in {
        "PostgresStore",
        "EmbeddedStore",
        "MemoryStore",
        "Step",
        "AsyncStep",
    }
    return ("", None) if hidden else None


def _others(app: Any, docname: str, source: list[str]) -> None:
    """The table of contents ends with the pages that it does not name, so that a new page is in it."""
    if docname == "index":
        named = set(source[0].splitlines())
        others = sorted(page.stem for page in app.srcdir.glob("*.md") if page.stem not in named | {"index"})
        source[0] = source[0].replace("\nOTHERS\n", "\n" + "\n".join([*others, ""]))


def _all_is_there(app: Any, problem: Exception | None) -> None:
    """Every public name stands on the API page."""
    if problem is None:
        told = app.env.get_domain("py").objects
        public = {f"{module}.{name}" for module in PUBLIC for name in importlib.import_module(module).__all__}
        errors = {
            f"durable.{name}" for name in importlib.import_module("durable.errors").__all__
        }  # shown where they live
        if missing := sorted(public - set(told) - errors - set(PUBLIC)):
            raise ExtensionError(f"not on the API page: {', '.join(missing)}")


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _fences_as_blocks)
    app.connect("autodoc-process-signature", _made_by_us)
    app.connect("source-read", _others)
    app.connect("build-finished", _all_is_there)
