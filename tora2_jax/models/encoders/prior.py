"""The appearance priors of eq. 3, `eps_prior`: what a recognition network has to give.

Humans and objects have one prior each, called "face" and "object" everywhere. Which it is, a config
in `ModelConfig` says: of ArcFace, of a residual network, or of features that only files bring. To
plug in another network, give its config a case in `prior_sizes` and in `build_prior`; all behind
them knows `PriorSizes` alone, and no number of tokens is special.
"""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float

from tora2_jax.config import ArcFaceConfig, ModelConfig, ObjectEncoderConfig, StoredPriorConfig
from tora2_jax.models.encoders import arcface, object_encoder
from tora2_jax.types import Kind, PriorFeatures

PriorName = Literal["face", "object"]
PriorConfig = ArcFaceConfig | ObjectEncoderConfig | StoredPriorConfig


@runtime_checkable
class PriorEncoder(Protocol):
    """A frozen network that describes images of entities. It computes in float32."""

    def __call__(
        self, images: Float[Array, "*n height width 3"], *, train: bool = False
    ) -> PriorFeatures:
        """Tokens `[*n, k, f]`, any fixed k, and a vector `[*n, f_vector]`.

        Args:
            images: RGB in [0, 1]; the network normalizes them itself.
            train: use and update statistics of the batch, if the network has any.

        Raises:
            ValueError: the images do not have the height and width the network was made for.
        """


class PriorSizes(NamedTuple):
    """How large the features of a prior are."""

    tokens: int  # k
    width: int  # f, of a token
    vector_width: int  # f_vector


def prior_configs(model: ModelConfig) -> dict[PriorName, PriorConfig]:
    """The prior of each class."""
    return {
        "face": model.stored_face or model.face,
        "object": model.stored_object or model.object,
    }


def prior_sizes(config: PriorConfig) -> PriorSizes:
    """How large the features are that a prior gives."""
    if isinstance(config, StoredPriorConfig):
        return PriorSizes(config.tokens, config.width, config.vector_width)
    if isinstance(config, ArcFaceConfig):
        return PriorSizes(arcface.map_size(config) ** 2, config.widths[-1], config.embedding)
    rows, columns = object_encoder.map_shape(config)
    return PriorSizes(rows * columns, config.width, config.width)


def build_prior(config: PriorConfig, rngs: nnx.Rngs) -> PriorEncoder | None:
    """The network of a prior with random weights; None if only files bring its features."""
    if isinstance(config, StoredPriorConfig):
        return None
    if isinstance(config, ArcFaceConfig):
        return arcface.ArcFace(config, rngs=rngs)
    return object_encoder.ObjectEncoder(config, rngs=rngs)


def prior_of(model: ModelConfig, kind: Kind) -> PriorName:
    """Which prior describes an entity; Table 2's `dino_reid` has the object's for all."""
    one_for_all = model.personalization and model.personalization.variant == "dino_reid"
    return "face" if kind == "human" and not one_for_all else "object"


def stored_priors(model: ModelConfig) -> set[PriorName]:
    """The priors that only files bring."""
    configs = prior_configs(model).items()
    return {name for name, config in configs if isinstance(config, StoredPriorConfig)}
