"""Floating-point operations of one sample, counted from the sizes (a compiler counts a scan once).

Only products of matrices and convolutions are counted, a multiplication and an addition as two, as
is usual for utilization (MFU). Norms, activations and softmax are left out.
"""

from collections.abc import Collection
from typing import NamedTuple

from tora2_jax.config import ModelConfig
from tora2_jax.config.train import TrainConfig
from tora2_jax.models.encoders.prior import prior_configs, prior_sizes

ATTENTION = "attention"  # of the stream to itself
_OWN = "personalization"
_KERNEL = 3  # of all convolutions of the motion path


class Work(NamedTuple):
    """The products of one part of the network, in operations per sample."""

    name: str
    forward: float
    weights: str | None  # the component whose weights they are; None: of activations (attention)
    in_blocks: bool  # computed again where blocks are rematerialized


class TrainingWork(NamedTuple):
    """Operations of a training step."""

    model: float  # what the mathematics asks for: this counts for the utilization
    executed: float  # with what rematerialization of blocks computes again; attention in chunks,
    # where no kernel does it (TPU, CPU), computes its own forward pass once more


def forward_work(
    model: ModelConfig, size: tuple[int, int, int], *, with_text_encoder: bool = False
) -> list[Work]:
    """The parts of one forward pass of the diffusion model, conditions included.

    Args:
        model: Sizes; parts that are None are left out.
        size: Frames, height and width in pixels.
        with_text_encoder: Whether T5 reads the caption in the same pass.
    """
    grid = model.token_grid(*size)
    works = _transformer(model, grid)
    if model.motion:
        works += _motion(model, grid)
    if model.personalization:
        works += _appearance(model, grid)
    if with_text_encoder:
        works.append(_text_encoder(model))
    return works


def training_work(
    works: list[Work], trained: Collection[str], rematerialize: str = "full"
) -> TrainingWork:
    """Forward and backward pass of one sample.

    The backward pass asks once for the gradient of the input and, where trained, once for that of
    the weights; of two activations, for both. What lies before everything trained has no gradient.

    Args:
        works: From `forward_work`.
        trained: Components that are trained: transformer, motion, personalization, text.
        rematerialize: Policy of the config: "none" computes nothing again, "full" every block,
            the others every block but its attention.
    """
    forward = sum(work.forward for work in works)
    backward = 0.0
    for work in works:
        frozen = work.weights is not None and work.weights not in trained
        if frozen and not work.in_blocks:
            continue  # embeddings and encoders that stay as they are
        backward += work.forward * (1 if frozen else 2)
    again = 0.0
    if rematerialize != "none":
        kept = None if rematerialize == "full" else ATTENTION
        again = sum(work.forward for work in works if work.in_blocks and work.name != kept)
    return TrainingWork(forward + backward, forward + backward + again)


def step_work(config: TrainConfig, trained: Collection[str]) -> TrainingWork:
    """Operations of one training step of a diffusion stage, of all devices together.

    Args:
        config: Its clips have the size of its model.
        trained: See `training_work`.
    """
    model = config.model
    works = forward_work(model, (model.frames, model.height, model.width), with_text_encoder=True)
    sample = training_work(works, trained, model.transformer.rematerialize)
    return TrainingWork(*(count * config.batch_size for count in sample))


def speed(operations: float, seconds: float, devices: int, peak: float) -> dict[str, float]:
    """Measures of a step's speed, for the training log.

    Args:
        operations: Of a step, what is computed again left out (`TrainingWork.model`).
        seconds: Of a step.
        devices: That share it.
        peak: Operations per second of one device; 0 if it is not known.
    """
    rate = operations / seconds / devices
    measures = {"speed/tflops_per_device": rate / 1e12}
    return measures | ({"speed/utilization": rate / peak} if peak else {})


def _transformer(model: ModelConfig, grid: tuple[int, int, int]) -> list[Work]:
    config, width = model.transformer, model.transformer.width
    video, text = _product(*grid), config.max_text_length
    length, layers = video + text, config.num_layers
    patch = config.patch_size**2 * (config.patch_size_t or 1)
    projections = 12 * width**2  # query, key, value, output; 4 and 4 of the feed-forward
    modulation = 2 * 6 * width * config.time_embed_dim
    ends = video * width * patch * (config.in_channels + config.out_channels)
    ends += text * config.text_embed_dim * width
    return [
        Work("linear", 2.0 * layers * (length * projections + modulation), "transformer", True),
        Work(ATTENTION, 4.0 * layers * length**2 * width, None, True),
        Work("embeddings", 2.0 * ends, "transformer", False),
    ]


def _motion(model: ModelConfig, grid: tuple[int, int, int]) -> list[Work]:
    config, motion = model.transformer, model.motion
    tokens, layers, width = _product(*grid), config.num_layers, config.width
    inner, area = width // 4, _KERNEL**2
    channels = config.out_channels * config.patch_size**2 * (config.patch_size_t or 1)
    chain = layers * motion.blocks_per_layer * 2 * area * motion.width**2
    chain += area * channels * motion.width
    spatial = 2 * area * motion.width * inner  # gamma and beta
    temporal = 2 * _KERNEL * inner * width
    return [
        Work("trajectory extractor", 2.0 * tokens * chain, "motion", True),
        Work("fuser, spatial", 2.0 * tokens * layers * spatial, "motion", True),
        Work("fuser, temporal", 2.0 * tokens * layers * temporal, "motion", True),
    ]


def _appearance(model: ModelConfig, grid: tuple[int, int, int]) -> list[Work]:
    config, settings = model.transformer, model.personalization
    tokens, entities = _product(*grid), model.max_entities
    inner = settings.cross_heads * settings.cross_head_dim
    crossed = -(-config.num_layers // settings.every_k)
    references = _reference_tokens(model)
    queries = settings.queries if settings.variant == "dpe" else references
    keys = entities * queries
    works = [
        Work("cross-attention, stream", 4.0 * crossed * tokens * config.width * inner, _OWN, True),
        Work("cross-attention, scores", 4.0 * crossed * tokens * keys * inner, None, True),
        Work(
            "cross-attention, keys and values",
            4.0 * crossed * keys * settings.width * inner,
            _OWN,
            False,
        ),
    ]
    if settings.variant == "dpe":
        works.append(_query_former(settings, entities, references))
    return works


def _query_former(settings, entities: int, references: int) -> Work:
    inner, width = settings.num_heads * settings.head_dim, settings.width
    per_query = 2 * width * inner + 2 * settings.mlp_ratio * width**2
    layer = settings.queries * per_query + references * 2 * width * inner
    layer += 2 * settings.queries * references * inner  # scores, and values by them
    return Work("Q-Former", 2.0 * settings.num_layers * entities * layer, _OWN, False)


def _reference_tokens(model: ModelConfig) -> int:
    """Appearance tokens of one entity (eq. 3)."""
    count = (model.dino.image_size // model.dino.patch_size) ** 2
    priors = prior_configs(model)
    used = {"dino": [], "dino_reid": [priors["object"]]}
    used = used.get(model.personalization.variant, list(priors.values()))
    if used:
        count += 1 + max(prior_sizes(prior).tokens for prior in used)
    return model.max_references * count


def _text_encoder(model: ModelConfig) -> Work:
    text, length = model.text, model.transformer.max_text_length
    inner = text.num_heads * text.head_dim
    layer = length * (4 * text.width * inner + 3 * text.width * text.mlp_dim)
    layer += 2 * length**2 * inner
    return Work("text encoder", 2.0 * text.num_layers * layer, "text", False)


def _product(t: int, h: int, w: int) -> int:
    return t * h * w
