"""Links of the documentation that lead out of docs/, as the site shows them.

A page links to source files as `../tora2_jax/...`, which a code host follows. A site has no such
pages: with `repo_url` in mkdocs.yml they lead to the repository, without it they are plain code.
MkDocs runs the functions below by their names.
"""

import re
from pathlib import Path
from typing import Any

_FENCED = re.compile(r"^( *)(```+).*?^\1\2", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[([^\]\[]+)\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")
_LOADED = re.compile(r"https://unpkg\.com/[^\"]*|^//# sourceMappingURL=.*$", re.MULTILINE)


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """A page whose links all stay on the site or lead to the repository; fenced code stays."""
    parts, end = [], 0
    for code in _FENCED.finditer(markdown):
        parts += [rewritten(markdown[end : code.start()], config.repo_url), code.group()]
        end = code.end()
    return "".join(parts) + rewritten(markdown[end:], config.repo_url)


def rewritten(text: str, repo_url: str | None) -> str:
    """Text with other links out of docs/; of images MkDocs warns."""

    def link(found: re.Match[str]) -> str:
        label, path, anchor = found[1], found[2], found[3] or ""
        if repo_url:
            return f"[{label}]({repo_url.rstrip('/')}/blob/main/{path}{anchor})"
        name = label.strip("`")
        return f"`{name}`" if path.endswith(name) else f"{label} (`{path}`)"

    return _LINK.sub(link, text)


def on_post_build(*, config: Any, **_: Any) -> None:
    """Takes from the theme's scripts what they would load from elsewhere, and what debugs them."""
    assets = Path(config.site_dir) / "assets"
    for script in assets.rglob("*.js"):
        script.write_text(_LOADED.sub("", script.read_text("utf-8")), "utf-8")
    for source_map in assets.rglob("*.map"):
        source_map.unlink()
