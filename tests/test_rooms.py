"""The house: rooms import those before them only, nothing in a circle, and folders stay small."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A room may import those before it, never those behind it.
ROOMS = (
    *("errors", "system", "types", "text", "config", "diffusion", "media", "parallel", "models"),
    *("weights", "trajectory", "references", "request", "conditioning", "sampling", "hardware"),
    *("world", "data", "evaluation", "train", "plan", "inspection", "studio"),
)
MOST_MODULES = 12  # of a folder


def modules(package: str) -> dict[str, Path]:
    """Every module by its dotted name."""
    names = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        names[dotted.removesuffix(".__init__")] = path
    return names


def imports(package: str) -> dict[str, set[str]]:
    """What each module imports of its own package, also inside functions."""
    known, found = modules(package), {}
    for name, path in known.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    found[name].add(full if full in known else node.module)
    return found


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Some modules that import each other in a circle; empty if there are none."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(edges.get(name, ())):
            if found := visit(other, [*way, name]):
                return found
        done.add(name)
        return []

    for name in sorted(edges):
        if found := visit(name, []):
            return found
    return []


def test_rooms_import_only_what_stands_before_them():
    wrong = []
    for name, others in imports("tora2_jax").items():
        for other in others - {"tora2_jax"}:
            rooms = [full.split(".")[1] for full in (name, other)] if "." in name else []
            if rooms and ROOMS.index(rooms[0]) < ROOMS.index(rooms[1]):
                wrong.append(f"{name} imports {other}")
    assert not wrong


@pytest.mark.parametrize("package", ["tora2_jax", "convert"])
def test_nothing_imports_in_a_circle(package):
    assert not circle(imports(package))
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("package", ["tora2_jax", "convert"])
def test_folders_stay_small(package):
    large = {}
    for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
        count = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        name = str(folder.relative_to(ROOT))
        if count > MOST_MODULES:
            large[name] = count
    assert not large


def test_what_is_imported_is_listed_in_setup():
    """Not only what other libraries happen to bring. PyTorch is an extra, for conversion."""
    text = (ROOT / "setup.py").read_text()
    names = {
        "PIL": "pillow",
        "cv2": "opencv-python",
        "absl": "absl-py",
        "orbax": "orbax-checkpoint",
    }
    # typing_extensions is read by type checkers only, which bring it.
    own = {"tora2_jax", "convert", "torch", "typing_extensions", *sys.stdlib_module_names}
    missing = set()
    for package in ("tora2_jax", "convert"):
        for path in modules(package).values():
            for node in ast.walk(ast.parse(path.read_text())):
                found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    found = [node.module]
                for top in {name.split(".")[0] for name in found} - own:
                    listed = names.get(top, top).replace("_", "[-_]")
                    if not re.search(rf'"{listed}[>=<\[]', text):
                        missing.add(top)
    assert not missing


def loaded_by(code: str) -> set[str]:
    """Modules of this project that are loaded after some code has run."""
    program = f"import sys\n{code}\nprint(*(n for n in sys.modules if n.startswith('tora2_jax')))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_the_package_and_the_pipeline_load_little():
    assert len(loaded_by("import tora2_jax")) < 30
    pipeline = loaded_by("from tora2_jax import Tora2Pipeline")
    rooms = {name.split(".")[1] for name in pipeline if "." in name}
    assert not rooms & {"train", "data", "world", "plan", "inspection", "evaluation"}


@pytest.mark.long
def test_a_checkpoint_is_read_without_training_data_or_world():
    code = "from tora2_jax import Tora2Pipeline\nTora2Pipeline.from_checkpoint('checkpoints/toy')"
    rooms = {name.split(".")[1] for name in loaded_by(code) if "." in name}
    assert not rooms & {"train", "data", "world", "plan", "inspection", "evaluation"}
