"""The picture that an image-to-video model starts from: file -> pixels -> latents."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image, ImageOps

from tora2_jax.config.model import ModelConfig
from tora2_jax.media.image_file import load_image
from tora2_jax.models.vae.vae import CausalVAE
from tora2_jax.request.load import Request


def first_frame(request: Request) -> Float[np.ndarray, "height width 3"]:
    """The image of a request with sizes, brought to the size of the video.

    In [-1, 1], rounded to 8 bits after the resize. `stretch` does as diffusers, without regard to
    the aspect ratio; `crop` cuts off what is too much at both ends, `pad` fills up in black.
    """
    picture = Image.fromarray(load_image(request.image)).convert("RGB")
    size, method = (request.width, request.height), Image.Resampling.LANCZOS
    if request.fit == "crop":
        picture = ImageOps.fit(picture, size, method)
    elif request.fit == "pad":
        picture = ImageOps.pad(picture, size, method)
    else:
        picture = picture.resize(size, method)
    return 2 * (np.asarray(picture, np.float32) / 255) - 1


def encode_first_frame(
    vae: CausalVAE, model: ModelConfig, image: Float[Array, "b height width 3"], frames: int
) -> Float[Array, "b t_lat h_lat w_lat latent"]:
    """The first frame's latent, then zeros, as CogVideoX's I2V models are given it.

    Where CogVideoX 1.5 pads its latents in front, the image stands in the padding frame alone, as
    diffusers' pipeline has it.

    Args:
        vae: With its weights; the posterior's mode is taken, where diffusers draws.
        model: Whether the scaling factor multiplies or divides, and the patch size in time.
        image: In [-1, 1].
        frames: Latent frames of the video, before padding.
    """
    factor = model.vae.scaling_factor
    latent = vae.encode(image[:, None]).mean
    latent = latent / factor if model.vae.invert_scale_latents else latent * factor
    patch_t = model.transformer.patch_size_t or 1
    rest = -(-frames // patch_t) * patch_t - 1
    return jnp.pad(latent, ((0, 0), (0, rest), (0, 0), (0, 0), (0, 0)))
