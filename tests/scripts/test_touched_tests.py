"""Which tests a change asks for."""

from scripts.touched_tests import PARITY, TESTS, files_for

TEXTS = {
    "models/test_dit.py": "from tora2_jax.models.dit import CogVideoXTransformer",
    "models/test_vae.py": "from tora2_jax.models.vae import vae",
    "train/test_optim.py": "from tora2_jax.train import optim",
    "convert/test_convert.py": "from convert.engine import folders",
}


def test_a_module_asks_for_the_tests_of_its_room_that_name_it():
    assert files_for(["tora2_jax/models/dit.py"], TEXTS) == ["models/test_dit.py"]
    assert files_for(["tora2_jax/models/vae/vae.py"], TEXTS) == ["models/test_vae.py"]
    assert files_for(["convert/engine/folders.py"], TEXTS) == ["convert/test_convert.py"]
    assert files_for(["tora2_jax/train/dit.py", "docs/toy.md", "README.md"], TEXTS) == []


def test_a_changed_test_is_run_itself():
    assert files_for(["tests/train/test_optim.py"], TEXTS) == ["train/test_optim.py"]
    assert files_for(["tests/models/test_deleted.py"], TEXTS) == []


def test_the_parity_tests_are_there():
    for name in PARITY:
        path, _, test = name.partition("::")
        assert f"def {test}" in (TESTS / path).read_text()
