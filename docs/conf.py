"""How `make docs` builds these pages: Sphinx, MyST for Markdown, furo for the looks. A warning is an error."""

from __future__ import annotations

import importlib
import re
from importlib.metadata import version as installed
from typing import Any

from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer

project = "durable"
author = "the authors of durable"
copyright = "the authors of durable"  # noqa: A001 -- Sphinx reads it by this name
release = version = installed("durable-postgres")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"durable {release}"
html_static_path = ["_static"]
html_css_files = ["durable.css"]
html_extra_path = ["llms.txt"]

myst_heading_anchors = (
    3  # so that `steps.md#signals` is a link here as well as on a page of Markdown
)
default_role = "code"  # docstrings quote code as Markdown does, in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("OnVersionMismatch", "OnConflict")}
maximum_signature_line_length = 100
add_module_names = False

PUBLIC = (
    "durable",
    "durable.aio",
    "durable.errors",
    "durable.stores",
    "durable.testing",
    "durable.telemetry",
    "durable.web",
)

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


def _made_by_us(
    _: Any, what: str, name: str, __: Any, ___: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """How a store or a step is made is our business: users get theirs from a function. Names of types stay names."""
    hidden = what == "class" and name.rpartition(".")[2] in {
        "PostgresStore",
        "EmbeddedStore",
        "MemoryStore",
        "Step",
        "AsyncStep",
    }
    if hidden:
        return "", None
    if signature is None or "TypeAliasForwardRef" not in signature:
        return None
    return re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature), returns


def _others(app: Any, docname: str, source: list[str]) -> None:
    """The reference names the pages that the table of contents does not, so that a new page is in it."""
    if docname == "index":
        named = set(source[0].splitlines())
        pages = (
            page.relative_to(app.srcdir).with_suffix("").as_posix()
            for page in app.srcdir.rglob("*.md")
        )
        others = sorted(
            page for page in pages if page not in named | {"index"} and not page.startswith("_")
        )
        source[0] = source[0].replace("\nOTHERS\n", "\n" + "\n".join([*others, ""]))


_PICTURE = re.compile(r'<img alt="([^"]*)" src="([^"]*_images/)([^"/]+)\.svg"[^>]*/>')
_DARK = re.compile(r"@media \(prefers-color-scheme: dark\) \{\n(.*?)\n\}\n", flags=re.DOTALL)


def _pictures_by_theme(app: Any, _: str, __: str, context: dict[str, Any], ___: Any) -> None:
    """A drawing asks the system for light or dark, and a reader may have asked the page: so each is there in both."""
    context["body"] = _PICTURE.sub(lambda image: _both(app, image), context.get("body", ""))


def _both(app: Any, image: re.Match[str]) -> str:
    drawing = (app.srcdir / "images" / f"{image[3]}.svg").read_text("utf-8")
    if not _DARK.search(drawing):
        return image[0]
    shown = app.outdir / "_images"
    shown.mkdir(exist_ok=True)
    told = []
    for theme, text in (("light", _DARK.sub("", drawing)), ("dark", _DARK.sub(r"\1\n", drawing))):
        (shown / f"{image[3]}-{theme}.svg").write_text(text, "utf-8")
        told.append(
            f'<img class="only-{theme}" alt="{image[1]}" src="{image[2]}{image[3]}-{theme}.svg" />'
        )
    return f'<span class="drawing">{"".join(told)}</span>'


def _all_is_there(app: Any, problem: Exception | None) -> None:
    """Every public name stands on the API page."""
    if problem is None:
        told = app.env.get_domain("py").objects
        public = {
            f"{module}.{name}"
            for module in PUBLIC
            for name in importlib.import_module(module).__all__
        }
        errors = {
            f"durable.{name}" for name in importlib.import_module("durable.errors").__all__
        }  # shown where they live
        if missing := sorted(public - set(told) - errors - set(PUBLIC)):
            raise ExtensionError(f"not on the API page: {', '.join(missing)}")


def _one_signature_each() -> None:
    """Overloads are for type checkers; a reader wants the one signature that has all options."""
    analyze = ModuleAnalyzer.analyze

    def without_overloads(self: ModuleAnalyzer) -> None:
        analyze(self)
        self.overloads.clear()

    ModuleAnalyzer.analyze = without_overloads  # type: ignore[method-assign]


def setup(app: Any) -> None:
    """Sphinx calls this."""
    _one_signature_each()
    app.connect("autodoc-process-docstring", _fences_as_blocks)
    app.connect("autodoc-process-signature", _made_by_us)
    app.connect("source-read", _others)
    app.connect("html-page-context", _pictures_by_theme)
    app.connect("build-finished", _all_is_there)
