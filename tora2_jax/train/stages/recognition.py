"""Stages `face`, `object` and `dino`: the toy world's frozen encoders of references.

They learn to tell apart identities that one word covers (our decision).
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from tora2_jax.config.train import TrainConfig
from tora2_jax.data.loader import ENDLESS, Source
from tora2_jax.evaluation.bench.measure import found_own
from tora2_jax.evaluation.bench.networks import NAMES
from tora2_jax.models.encoders.arcface import ArcFace
from tora2_jax.models.encoders.dinov2 import DINOv2
from tora2_jax.models.encoders.object_encoder import ObjectEncoder
from tora2_jax.models.layers.basic import Linear
from tora2_jax.references.crops import prepare
from tora2_jax.train.stage import Stage
from tora2_jax.train.stages import local_appearance, probes
from tora2_jax.train.stages.contrast import contrast, masked_mean, normalized
from tora2_jax.types import PriorFeatures
from tora2_jax.world.clips import WORDS, render_reference, sample_entity
from tora2_jax.world.entities import Entity

FACE_IDENTITIES = 512  # fixed pool: the angular margin needs one class vector per identity
ANGLE_SCALE, ANGLE_MARGIN = 32.0, 0.3  # ArcFace, eq. 3; a smaller margin suits a small network
GROUP = 8  # identities of one word per example; also the number of candidates in a retrieval
EMBEDDING = 64


class Recognition(nnx.Module):
    """An encoder that is kept, and a head that only training needs.

    `face`: one unit vector per training identity. `object`: a projection for contrast. `dino`: a
    projection and a classifier of words, both on the class token beside the mean patch token, so
    that patch tokens carry what the class token does.
    """

    def __init__(self, config: TrainConfig, *, rngs: nnx.Rngs):
        model = config.model
        if config.stage == "face":
            self.encoder = ArcFace(model.face, rngs=rngs)
            self.head = Linear(model.face.embedding, FACE_IDENTITIES, use_bias=False, rngs=rngs)
        elif config.stage == "object":
            self.encoder = ObjectEncoder(model.object, rngs=rngs)
            self.head = Linear(model.object.width, EMBEDDING, rngs=rngs)
        else:
            self.encoder = DINOv2(model.dino, rngs=rngs)
            self.head = Linear(2 * model.dino.width, EMBEDDING, rngs=rngs)
            self.word_head = Linear(2 * model.dino.width, len(NAMES), rngs=rngs)
        width = {
            "face": model.face.widths[-1],
            "object": model.object.width,
            "dino": model.dino.width,
        }[config.stage]
        draws = config.recognition.local_weight > 0
        values = 3 * local_appearance.PIXELS**2
        self.local_head = Linear(width, values, rngs=rngs) if draws else None

    def describe(
        self, images: Float[Array, "b side side 3"], *, train: bool = False
    ) -> PriorFeatures:
        """Tokens, and the vector that the losses and the retrieval compare, before the head."""
        if isinstance(self.encoder, DINOv2):
            first, patches = self.encoder.features(images)
            vector = jnp.concatenate([first, patches.mean(1)], axis=-1)
            return PriorFeatures(tokens=patches, vector=vector)
        return self.encoder(images, train=train)

    def drawing_loss(self, tokens: Array, images: Float[Array, "b side side 3"]) -> Array:
        """How far the tokens are from drawing what they stand for; 0 without a head for it."""
        if self.local_head is None:
            return jnp.zeros(())
        return local_appearance.drawing_loss(self.local_head(tokens), images)


def build(config: TrainConfig, rngs: nnx.Rngs) -> Recognition:
    """A fresh network for `config.stage`; raises ValueError for any other stage."""
    if config.stage not in ("face", "object", "dino"):
        raise ValueError(
            f"stage {config.stage!r} trains no recognition network; use face, object or dino"
        )
    return Recognition(config, rngs=rngs)


def words_of(stage: str) -> list[str]:
    """Words of the world whose entities a stage learns."""
    wanted = {"face": ("human",), "object": ("object",)}.get(stage, ("human", "object"))
    return [word for word, kind in WORDS if kind in wanted]


def view(
    config: TrainConfig, identity: tuple[int, ...], word: str, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "side side 3"], bool]:
    """One reference of an identity as the stage's encoder sees it, and whether it is usable."""
    image = render_reference(sample_entity(identity, word, config.world.style), rng)
    prepared = prepare(image, dict(WORDS)[word], config.model)
    if config.stage == "dino":
        return prepared.dino, True
    return (prepared.face if config.stage == "face" else prepared.object), prepared.has_prior


class _Faces:
    """One view of one identity of the fixed pool per example."""

    def __init__(self, config: TrainConfig):
        self.config, self.words = config, words_of("face")

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.config.seed, index))
        identity = int(rng.integers(FACE_IDENTITIES))
        word = self.words[identity % len(self.words)]
        image, usable = view(self.config, _seed(self.config, "pool", identity), word, rng)
        return {"image": image, "identity": np.int32(identity), "usable": np.bool_(usable)}


class _Groups:
    """Two views of each of `GROUP` fresh identities of one word per example."""

    def __init__(self, config: TrainConfig, purpose: str = "train"):
        self.config, self.purpose, self.words = config, purpose, words_of(config.stage)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        config = self.config
        rng = np.random.default_rng(_seed(config, self.purpose, index))
        word = self.words[index % len(self.words)]
        identities = [_seed(config, self.purpose, index, member) for member in range(GROUP)]
        pairs = [[view(config, seed, word, rng) for _ in range(2)] for seed in identities]
        return {
            "images": np.stack([[image for image, _ in pair] for pair in pairs]),
            "usable": np.array([all(usable for _, usable in pair) for pair in pairs]),
            "word": np.int32(NAMES.index(word)),
        }


def _seed(config: TrainConfig, purpose: str, *numbers: int) -> tuple[int, ...]:
    return (config.seed, zlib.crc32(f"{config.stage} {purpose}".encode()), *numbers)


def source(config: TrainConfig) -> Source:
    """Examples of a stage.

    `face`: `image`, `identity`, `usable`. `object`, `dino`: `images [8, 2, side, side, 3]`,
    `usable [8]`, `word`.
    """
    return _Faces(config) if config.stage == "face" else _Groups(config)


def loss(
    config: TrainConfig, model: Recognition, batch: dict[str, Array], key: Array
) -> tuple[Array, dict[str, Array]]:
    """Scalar and metrics of a stage."""
    weight = config.recognition.local_weight
    if config.stage == "face":
        return _angular_loss(model, batch, weight)
    masked = key if config.stage == "dino" and weight else None
    return _contrast_loss(model, batch, weight, masked, with_words=config.stage == "dino")


def _angular_loss(
    model: Recognition, batch: dict[str, Array], local_weight: float = 0.0
) -> tuple[Array, dict[str, Array]]:
    """ArcFace: softmax over cosines, with a margin added to the angle of the right identity."""
    described = model.describe(batch["image"], train=True)
    drawing = model.drawing_loss(described.tokens, batch["image"])
    vectors = normalized(described.vector)
    cosine = vectors @ normalized(model.head.kernel[...], axis=0)
    own = jax.nn.one_hot(batch["identity"], FACE_IDENTITIES, dtype=bool)
    angle = jnp.arccos(jnp.clip(cosine, -1.0 + 1e-6, 1.0 - 1e-6))
    logits = ANGLE_SCALE * jnp.where(own, jnp.cos(angle + ANGLE_MARGIN), cosine)
    wrong = -jnp.where(own, jax.nn.log_softmax(logits), 0.0).sum(-1)
    right = jnp.argmax(cosine, -1) == batch["identity"]
    metrics = {"right": masked_mean(right, batch["usable"]), "drawing": drawing}
    return masked_mean(wrong, batch["usable"]) + local_weight * drawing, metrics


def _contrast_loss(
    model: Recognition,
    batch: dict[str, Array],
    local_weight: float,
    mask_key: Array | None,
    *,
    with_words: bool,
) -> tuple[Array, dict[str, Array]]:
    """Each view finds the other view of its identity, among all of the batch and of its word."""
    images = batch["images"]
    groups, members = images.shape[:2]
    images = images.reshape(-1, *images.shape[3:])
    seen = images
    if mask_key is not None:
        seen = local_appearance.mask_patches(images, model.encoder.patch_size, mask_key)
    tokens, features = model.describe(seen, train=True)
    vectors = normalized(model.head(features)).reshape(groups * members, 2, -1)
    word = jnp.repeat(jnp.arange(groups), members)
    usable = batch["usable"].reshape(-1)
    total, right = contrast(vectors[:, 0], vectors[:, 1], word, usable)
    drawing = model.drawing_loss(tokens, images)
    metrics = {"contrast": total, "right": right, "drawing": drawing}
    total = total + local_weight * drawing
    if with_words:
        words = jnp.repeat(batch["word"], members * 2)
        log_share = jax.nn.log_softmax(model.word_head(features))
        metrics["word"] = -jnp.take_along_axis(log_share, words[:, None], -1).mean()
        metrics["word_right"] = (jnp.argmax(log_share, -1) == words).mean()
        total = total + metrics["word"]
    return total, metrics


@nnx.jit
def _vectors(model: Recognition, images: Float[Array, "b side side 3"]) -> Float[Array, "b c"]:
    return normalized(model.describe(images).vector)


@nnx.jit
def _all_features(model: Recognition, images: Float[Array, "b side side 3"]) -> Array:
    tokens, vector = model.describe(images)
    return jnp.concatenate([tokens.reshape(len(images), -1), vector], axis=-1)


def finish(config: TrainConfig, model: Recognition, groups: int = 32) -> dict[str, float]:
    """Share of held-out identities whose second view is found among 8 of the same word.

    The encoder's own vector is compared, without the head: this is what the generator gets.
    """
    examples = _Groups(config, "held out")
    right, count = 0, 0
    for index in range(groups):
        example = examples[index]
        images = example["images"]
        vectors = np.asarray(_vectors(model, images.reshape(-1, *images.shape[2:])))
        vectors = vectors.reshape(GROUP, 2, -1)
        cosine = vectors[:, 0] @ vectors[:, 1].T
        own_first = np.stack([np.roll(row, -place) for place, row in enumerate(cosine)])
        usable = example["usable"]
        right, count = right + found_own(own_first)[usable].sum(), count + usable.sum()
    numbers = {"retrieval": float(right / max(count, 1))}
    if config.recognition.local_weight:
        found = _probe(config, model)
        numbers |= {name: value for name, value in found._asdict().items() if value == value}
    return numbers


def _probe(config: TrainConfig, model: Recognition) -> probes.Probe:
    def examples(word: str, count: int) -> tuple[np.ndarray, list[Entity]]:
        rng = np.random.default_rng(_seed(config, f"probe {word}"))
        seeds = [_seed(config, "probe", member) for member in range(count)]
        images = np.stack([view(config, seed, word, rng)[0] for seed in seeds])
        features = np.concatenate(
            [np.asarray(_all_features(model, part)) for part in np.split(images, 5)]
        )
        style = config.world.style
        return features, [sample_entity(seed, word, style) for seed in seeds]

    return probes.probe(words_of(config.stage), examples)


STAGE = Stage(
    build=build,
    source=source,
    loss=loss,
    components={"encoder": r"(?P<prefix>encoder\.).*"},
    finish=finish,
)
