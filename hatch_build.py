"""What the metadata say that `pyproject.toml` cannot: the README as PyPI shows it, and the project's addresses.

Both follow from one line, the address of the repository in `[tool.hatch.metadata.hooks.custom]`. PyPI knows no file beside the
README, so its links must be whole. While there is no address, the links are left out and their texts stay.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]*)\)")


class Described(MetadataHookInterface):  # type: ignore[misc, unused-ignore] # hatchling is there when it is built
    """See the module."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add `readme` and `urls`."""
        readme = (Path(self.root) / "README.md").read_text("utf-8")
        text, urls = shown(readme, str(self.config.get("repository", "")), metadata["version"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        if urls:
            metadata["urls"] = urls


def shown(readme: str, repository: str, version: str) -> tuple[str, dict[str, str]]:
    """The README with links that lead somewhere from anywhere, and the project's addresses by name."""
    base, release = repository.rstrip("/"), f"v{version}"
    if not base:
        return _LINK.sub(lambda link: "" if link[1] else link[2], readme), {}
    kinds = {"": "blob", "!": "raw"}
    whole = _LINK.sub(lambda link: f"{link[1]}[{link[2]}]({base}/{kinds[link[1]]}/{release}/{link[3]})", readme)
    return whole, {
        "Repository": base,
        "Documentation": f"{base}/blob/{release}/docs/index.md",
        "Changelog": f"{base}/blob/{release}/CHANGELOG.md",
        "Issues": f"{base}/issues",
    }
