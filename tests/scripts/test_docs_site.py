"""The documentation as a site: all pages are on it, its links hold, and it loads nothing."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from scripts.docs_links import on_page_markdown

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("**/*.md"))
_FENCED = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
# A list right behind text, or a nested one with less than four spaces: no list on the site.
_NO_LIST = re.compile(
    r"^(?!- |\d+\. |  |#)[^\n]+\n(?:- |\d+\. ).*|^ {1,3}(?:- |\d+\. ).*", re.MULTILINE
)


def named(nav: Any) -> Iterator[str]:
    """The files that a navigation names."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from named(entry)


def shown(markdown: str, repo_url: str | None = None) -> str:
    """A page's Markdown as the site gets it."""
    return on_page_markdown(markdown, config=SimpleNamespace(repo_url=repo_url))


def test_every_page_has_one_place_in_the_navigation():
    places = list(named(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(places) == [str(page.relative_to(ROOT / "docs")) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lists_are_lists_on_the_site_too(page):
    assert _NO_LIST.findall(_FENCED.sub("", page.read_text())) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_out_of_the_folder_lead_to_files(page):
    for target in re.findall(r"\]\((\.\./[^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), target
    assert "](../" not in shown(page.read_text())


@pytest.mark.parametrize(
    ("markdown", "code", "link"),
    [
        ("[a/b.py](../a/b.py)", "`a/b.py`", "[a/b.py](URL/a/b.py)"),
        ("[`b.py`](../a/b.py)", "`b.py`", "[`b.py`](URL/a/b.py)"),
        ("[its\nmap](../README.md#map)", "its\nmap (`README.md`)", "[its\nmap](URL/README.md#map)"),
        ("[a](a.md#b), [c](https://c)", "[a](a.md#b), [c](https://c)", None),
        ("![a](../a.png)", "![a](../a.png)", None),
        ("```\n[a](../a)\n```\n[a](../a)", "```\n[a](../a)\n```\n`a`", None),
    ],
)
def test_links_out_of_the_folder_are_code_or_lead_to_the_repository(markdown, code, link):
    assert shown(markdown) == code
    if link is not None:
        url = "https://host/owner/name"
        assert shown(markdown, f"{url}/") == link.replace("URL", f"{url}/blob/main")


def test_fields_are_told_with_their_comments_and_defaults():
    griffe = pytest.importorskip("griffe")
    module = griffe.load(
        "tora2_jax.config.train",
        search_paths=[str(ROOT)],
        extensions=griffe.load_extensions(str(ROOT / "scripts" / "docs_fields.py")),
    )
    lines = module["TrainConfig"].docstring.value.splitlines()
    assert "    batch_size: global, over all processes (above 0)" in lines
    assert "    ema_decay: None: no average is kept." in lines
    assert str(module["TrainConfig"].parameters["steps"].default) == "15000"
    assert "    flip: probability of a mirrored picture (0 to 1)" in (
        module["ReferenceGuardConfig"].docstring.value.splitlines()
    )


@pytest.mark.long
def test_the_site_is_built_without_a_warning_and_loads_nothing(tmp_path):
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {page.name for page in tmp_path.glob("*.html")}
    assert pages == {"404.html", *(page.with_suffix(".html").name for page in PAGES)}
    for file in tmp_path.rglob("*"):
        if file.suffix in (".html", ".css", ".js"):
            text = file.read_text("utf-8")
            assert not re.search(r"https?://fonts|unpkg|cdn\b", text), file
            assert not re.search(r"(<script|<img|<link|@import)[^>;]*https?://", text), file
    assert "batch_size" in (tmp_path / "api_settings.html").read_text("utf-8")
