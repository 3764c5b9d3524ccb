"""What a package index shows of the project."""

import re
from pathlib import Path
from typing import Any

import pytest

from hatch_build import Hook, shown
from webhookd import __version__

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
RELATIVE = re.compile(r"\]\((?!https?://)([^)]*)\)")


def made() -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    Hook(str(REPOSITORY), {}).update(metadata)
    return metadata


def test_links_lead_to_the_files_of_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOKD_REPOSITORY_URL", "https://git.example/webhookd/")
    files = f"https://git.example/webhookd/blob/v{__version__}"
    text, urls = made()["readme"]["text"], made()["urls"]
    assert RELATIVE.findall(README)
    assert not RELATIVE.findall(text)
    linked = {link.removeprefix(f"{files}/") for link in re.findall(r"\]\(([^)]*)\)", text) if link.startswith(files)}
    linked |= {url.removeprefix(f"{files}/") for name, url in urls.items() if name != "Repository"}
    assert linked >= {"docs/configuration.md", "SECURITY.md", "CHANGELOG.md", "config/examples"}
    assert all((REPOSITORY / path).exists() for path in linked)
    assert urls["Repository"] == "https://git.example/webhookd"


def test_without_a_repository_no_link_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEBHOOKD_REPOSITORY_URL", raising=False)
    text = made()["readme"]["text"]
    assert made()["urls"] == {}
    assert not RELATIVE.findall(text)
    assert "https://www.standardwebhooks.com/" in text
    assert "docs/configuration.md has every key" in text


def test_what_is_no_link_stays() -> None:
    for text in ("`x[1](a)`"[:5], "[a](https://b)", "[a](#b)", "![a](b.png)", "[endpoint.orders]\nurl (x)"):
        assert shown(text, None) == shown(text, "https://x") == text
    assert shown("[a](b.md#c) [d](e)", "https://x") == "[a](https://x/b.md#c) [d](https://x/e)"
