"""`--smoke`: a run of few examples, to see in little time whether all of a run works."""

from dataclasses import replace
from pathlib import Path

from tora2_jax.config.train import TrainConfig

STEPS = 2


def smoke(config: TrainConfig, workdir: str | Path) -> TrainConfig:
    """The config with two steps over the examples of one batch, each step saved.

    Model, weights, sizes, batch and devices stay what they are, so that what is missing, does not
    fit or needs too much memory is found. All that it makes lies in `workdir`.
    """
    cache = None if config.cache_dir is None else str(Path(workdir) / "cache")
    size = None if config.data_size is None else min(config.data_size, config.batch_size)
    clips = config.clips and replace(config.clips, at_most=config.batch_size)
    return replace(
        config,
        steps=STEPS,
        data_size=size,
        cache_dir=cache,
        clips=clips,
        optim=replace(config.optim, warmup_steps=min(config.optim.warmup_steps, 1)),
        checkpoint_every=1,
        log_every=1,
        sample_every=0,
        export=None,
    )
