"""The Python that the pages show runs as it stands there, block after block."""

import os
import re
from pathlib import Path

import pytest

from tora2_jax.media.video_reading import read_video

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("page", "videos"),
    [("README.md", ["python.mp4"]), ("docs/python.md", ["circle.mp4"])],
)
def test_the_python_of_a_page_runs(page, videos, tmp_path, monkeypatch, capsys):
    for name in ("checkpoints", "examples"):
        os.symlink(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    blocks = _BLOCK.findall((ROOT / page).read_text())
    assert blocks
    names: dict = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    for name in videos:
        frames, _ = read_video(tmp_path / "out" / name)
        assert len(frames) == 17
    if page == "docs/python.md":
        assert "stopped after step 4 of 20" in capsys.readouterr().out
        assert (tmp_path / "out" / "preview.png").stat().st_size > 1000
