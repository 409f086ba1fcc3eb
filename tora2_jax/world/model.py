"""The size of the model that the bold toy world is learned by."""

from tora2_jax.config import ModelConfig, toy


def toy_bold() -> ModelConfig:
    """The model of the bold toy world: smaller frames, tokens of 8 x 8 pixels, smaller patches."""
    model = toy()
    model.name = "toy_bold"
    model.height = model.width = 64
    model.max_entities = 3
    model.motion.width = 48
    model.transformer.unroll_layers = True
    model.vae.channels = (12, 32, 64)
    model.dino.patch_size, model.dino.position_grid = 8, 7
    model.transformer.patch_size = 2
    model.transformer.sample_height = model.transformer.sample_width = 16
    return model
