"""What a package index shows: README with links that lead somewhere from there, and where the project lives.

Where that is, whoever publishes says with WEBHOOKD_REPOSITORY_URL, such as https://git.example/webhookd: relative links
become those of its files at the tag of the version. Without it they are text, since none shall lead nowhere.
"""

import os
import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\((?!https?://|#|mailto:)([^)\s]+)\)")


def shown(readme: str, files: str | None) -> str:
    """README as an index shows it; `files` is the URL that a path of the repository is appended to."""
    return _LINK.sub(lambda link: f"[{link[1]}]({files}/{link[2]})" if files else link[1], readme)


class Hook(MetadataHookInterface):
    """Sets the dynamic fields `readme` and `urls`."""

    def update(self, metadata: MutableMapping[str, Any]) -> None:
        """Called by hatchling, with what pyproject.toml says."""
        repository = os.environ.get("WEBHOOKD_REPOSITORY_URL", "").rstrip("/")
        version = re.search(r'__version__ = "([^"]+)"', (Path(self.root) / "webhookd/__init__.py").read_text())
        files = f"{repository}/blob/v{version[1]}" if repository and version else None
        text = shown((Path(self.root) / "README.md").read_text("utf-8"), files)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = (
            {
                "Repository": repository,
                "Documentation": f"{files}/docs/operating.md",
                "Changelog": f"{files}/CHANGELOG.md",
                "Security": f"{files}/SECURITY.md",
            }
            if files
            else {}
        )
