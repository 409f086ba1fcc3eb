"""The pool of encoded examples: what cannot be made is replaced and told."""

import json

import numpy as np
from flax import nnx

from tora2_jax.config import ModelConfig
from tora2_jax.data import pool


class _Examples:
    at_once = 2
    identity = {}  # noqa: RUF012

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index == 3:
            raise OSError("clip 3 is damaged")
        return np.float32(index), np.zeros((1, 2, 2, 3), np.uint8)


def test_an_example_that_cannot_be_made_is_replaced_and_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pool.conditioning, "batch_inputs", np.stack)
    monkeypatch.setattr(pool, "_features", lambda networks, model, inputs, video: {"x": inputs})
    pool.build(tmp_path, ModelConfig(), _Examples(), nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    made = pool.Pool(tmp_path)
    assert [float(made[index]["x"]) for index in range(5)] == [0, 1, 2, 4, 4]
    assert json.loads((tmp_path / "pool.json").read_text()) == {"size": 5, "replaced": {"3": 4}}
    assert "example 3 cannot be made (OSError: clip 3 is damaged); 4 takes its place" in caplog.text
    assert "1 of 5 examples are replaced" in caplog.text
