"""The notebook runs from top to bottom on a CPU."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tora2_jax.media.video_reading import read_video

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "first_video.ipynb"


@pytest.mark.long
def test_it_runs_and_shows_a_video(tmp_path, monkeypatch):
    for name in ("checkpoints", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").mkdir()
    monkeypatch.setenv("XLA_FLAGS", "")  # not eight devices
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path / "docs")}}
    ).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("<video" in output.get("data", {}).get("text/html", "") for output in shown)
    assert "10 of 10" in "".join(output.get("text", "") for output in shown)
    assert len(read_video(tmp_path / "out" / "notebook.mp4")[0]) == 17


def test_it_is_kept_without_outputs():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
