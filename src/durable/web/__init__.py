"""A page on which people see and steer runs: mounted in an application of yours, or served by `durable web`.

`application` is `app`, and `setup` what it was made with. `guard` stands before each request, `forms` before each change.
`reads` asks the store, off the event loop; `pages` and `changes` answer, `live` says what has changed. Pure are `shapes` (a
timeline as marks), `offers` (what may be done with a run), `links`, and `texts` (JSON as markup, hostile text made harmless).
`door` asks for the token of `durable web`.
"""

from __future__ import annotations

try:
    import jinja2 as _jinja2  # noqa: F401  # pyright: ignore[reportUnusedImport] -- whether they are there
    import python_multipart as _multipart  # noqa: F401  # pyright: ignore[reportUnusedImport]
    import starlette as _starlette  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"durable.web needs {missing.name}, which is not installed: pip install 'durable-postgres[web]'",
        name=missing.name,
    ) from None

from durable.web._application import app

__all__ = ["app"]
