"""Models named as on the hub, from a server on this machine that speaks its protocol."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hub_server import COMMIT, serving
from tora2_jax.system import hub

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "checkpoints" / "toy"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("zai-org/CogVideoX-5b", ("zai-org/CogVideoX-5b", None)),
        ("org/model.v2@refs/pr/3", ("org/model.v2", "refs/pr/3")),
        ("org/model@v1.0", ("org/model", "v1.0")),
        ("model", None),
        ("/org/model", None),
        ("./org/model", None),
        ("../org/model", None),
        ("org/model/vae", None),
        ("org/model@", None),
        ("gs://org/model", None),
        ("checkpoints/toj", None),  # a folder of the project, and a mistake in its name
    ],
)
def test_what_is_a_name_of_the_hub(monkeypatch, text, name):
    monkeypatch.chdir(ROOT)
    found = hub.hub_name(text)
    assert (None if found is None else tuple(found)) == name
    assert found is None or str(found) == text


def _local(folder: Path, address: str, *names: str, **environment: str) -> list[str]:
    """What `hub.local` gives or says of each name, in a process that knows this hub only."""
    program = (
        "import sys\nfrom tora2_jax.system import hub\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        print(hub.local(name))\n"
        "    except hub.HubError as error:\n        print(error)\n"
    )
    own = {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}
    own |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *names],
        cwd=folder,
        env=os.environ | own | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "served"
    (folder / "vae").mkdir(parents=True)
    files = ("config.json", "vae/model.safetensors", "pytorch_model.bin", "tf_model.h5", "card.gif")
    for name in files:
        (folder / name).write_text(f"content of {name}")
    return folder


@pytest.mark.long
def test_models_are_fetched_once_and_found_again_without_the_hub(model, tmp_path):
    with serving({"org/model": model}) as (address, asked):
        first, again, tagged = _local(tmp_path, address, "org/model", "org/model", "org/model@v1")
        assert sum("GET" in row and "model.safetensors" in row for row in asked) == 1
    folder = Path(first)
    assert folder.name == COMMIT and first == again == tagged
    kept = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert kept == ["config.json", "vae/model.safetensors"]
    assert (folder / "config.json").read_text() == "content of config.json"
    assert _local(tmp_path, address, "org/model", HF_HUB_OFFLINE="1") == [first]
    assert _local(tmp_path, "http://127.0.0.1:9", "org/model") == [first]  # no hub there


@pytest.mark.long
def test_what_cannot_be_had_is_told(model, tmp_path):
    with serving({"org/model": model, "org/gated": model}, gated={"org/gated"}) as (address, _):
        told = _local(tmp_path, address, "org/none", "org/model@v9", "org/gated")
    assert told[0].startswith("org/none: there is no such folder, and the hub shows no model")
    assert told[1] == "org/model@v9: the hub has the model, but no such revision"
    assert told[2].startswith("org/gated: the hub gives this model only to those who have agreed")
    (offline,) = _local(tmp_path, address, "org/none", HF_HUB_OFFLINE="1")
    assert offline.startswith("org/none: there is no such folder, HF_HUB_OFFLINE is set")
    (away,) = _local(tmp_path, "http://127.0.0.1:9", "org/none")
    assert away.startswith("org/none: there is no such folder, the hub cannot be reached")


@pytest.mark.long
def test_a_program_takes_such_a_name(tmp_path):
    with serving({"org/toy": TOY}) as (address, _):
        own = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        program = (
            "from tora2_jax import Tora2Pipeline\n"
            "print(Tora2Pipeline.from_checkpoint('org/toy').config.name)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | own | {"HF_HUB_DISABLE_XET": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    name = json.loads((TOY / "config.json").read_text())["model"]["name"]
    assert done.stdout.strip() == name, done.stderr
