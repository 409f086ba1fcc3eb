"""AdamW or Muon with a warm-up, a clipped gradient and two groups of learning rates."""

import math
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from tora2_jax.config.train import OptimConfig

_MUON_ADAM_SHARE = 0.15  # learning rate of Adam beside Muon's
_GATE = "alpha"  # last name of the path of a tanh gate's scalar
_DECAYED = {"kernel", "embedding"}  # last name of a path; biases, norms and gates are not decayed


def learning_rate(config: OptimConfig, steps: int) -> Callable:
    """Schedule: a linear warm-up that starts above zero, then constant or a cosine to zero."""

    def schedule(count):
        warmup = max(1, config.warmup_steps)
        rate = config.learning_rate * jnp.minimum(1.0, (count + 1) / warmup)
        if config.schedule == "constant":
            return rate
        progress = (count - config.warmup_steps) / max(1, steps - config.warmup_steps)
        return rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))

    return schedule


def decay_mask(paths: Iterable[str]) -> dict[str, bool]:
    """Which variables are decayed: matrices, convolutions and embedding tables.

    The name decides, not the rank, since the bias of stacked layers has two axes.
    """
    return {path: path.rpartition(".")[2] in _DECAYED for path in paths}


def rate_scales(config: OptimConfig, paths: Iterable[str]) -> dict[str, float]:
    """Factor on the learning rate of each variable.

    1 if Tora has it, else `new_lr_scale`; for the scalar of a tanh gate also `gate_lr_scale`.
    """
    known = re.compile(config.tora_initialized)

    def scale(path: str) -> float:
        group = 1.0 if known.match(path) else config.new_lr_scale
        return group * config.gate_lr_scale if path.rpartition(".")[2] == _GATE else group

    return {path: scale(path) for path in paths}


def make_optimizer(
    config: OptimConfig, steps: int, stacked: Collection[str] = ()
) -> optax.GradientTransformation:
    """The optimizer of every stage, for gradients as a flat dictionary keyed by path.

    Args:
        config: The settings.
        steps: Of the whole run, where a cosine ends.
        stacked: Paths of variables whose leading axis counts layers (`basic.stacked_paths`).
    """
    rate = learning_rate(config, steps)
    if config.algorithm == "muon":
        own = _muon(config, rate, _Matrices(config, stacked))
    else:
        own = _adamw(config, rate)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        own,
        optax.stateless(lambda updates, _: _scale(updates, rate_scales(config, updates))),
    )


def after_skipped_step(old: optax.OptState, new: optax.OptState) -> optax.OptState:
    """The state from before a step that is left out, but with the schedule one step further.

    So the learning rate stays a function of the step alone.
    """

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def one(before: Any, after: Any) -> Any:
        return after if is_schedule(before) else before

    return jax.tree.map(one, old, new, is_leaf=is_schedule)


def _adamw(config: OptimConfig, rate: Callable) -> optax.GradientTransformation:
    first, second = config.betas
    return optax.chain(
        optax.scale_by_adam(b1=first, b2=second, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(rate),
    )


class _Matrices:
    """What Muon makes steps of: kernels as matrices of inputs by outputs.

    Every layer of the stacked ones is a matrix of its own, and so is every map of a kernel that
    holds several side by side, which have an axis of their own here.
    """

    def __init__(self, config: OptimConfig, stacked: Collection[str]):
        self._taken, self._fused = map(re.compile, (config.muon, config.fused))
        self._stacked = stacked.__contains__
        if config.stacked is not None:
            self._stacked = re.compile(config.stacked).match

    def group(self, path: str) -> str:
        """Whose steps a variable makes."""
        return "muon" if path.endswith("kernel") and self._taken.match(path) else "adam"

    def dimensions(self, params: dict) -> dict:
        """Their axes in optax's form, for a tree in which the other variables are masked."""
        return {path: self._axes(path, value) for path, value in params.items()}

    def _axes(self, path: str, value: Any) -> MuonDimensionNumbers | optax.MaskedNode:
        if self.group(path) != "muon":
            return optax.MaskedNode()
        last = value.ndim - 1
        inputs = range(
            1 if self._stacked(path) else 0, last - 1 if self._fused.match(path) else last
        )
        return MuonDimensionNumbers(tuple(inputs), last)

    def widened(self, updates: dict, _: Any) -> dict:
        """Steps of Muon's published size: longer where a matrix has more outputs than inputs."""

        def one(update: Any, axes: Any) -> Any:
            if isinstance(axes, optax.MaskedNode):
                return update
            inputs = math.prod(update.shape[axis] for axis in axes.reduction_axis)
            return update * max(1, update.shape[-1] / inputs) ** 0.5

        dimensions = self.dimensions(updates)
        return {path: one(update, dimensions[path]) for path, update in updates.items()}


def _muon(config: OptimConfig, rate: Callable, matrices: _Matrices) -> optax.GradientTransformation:
    """Orthogonalized momentum for kernels, Adam for the rest.

    A network that is trained for minutes gets further than with Adam.
    """
    first, second = config.betas
    # Not optax's `muon`: it decays nothing that it leaves to Adam, or all of it, biases too.
    turned = optax.chain(
        scale_by_muon(beta=first, eps=config.eps, weight_dimension_numbers=matrices.dimensions),
        optax.stateless(matrices.widened),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(rate),
    )
    rest = optax.adamw(
        lambda count: _MUON_ADAM_SHARE * rate(count),
        b1=first,
        b2=second,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
        nesterov=True,
    )
    whole = optax.partition(
        {"muon": turned, "adam": rest},
        lambda params: {path: matrices.group(path) for path in params},
    )
    return _by_maps(whole, re.compile(config.fused), config.fused_maps)


def _by_maps(
    inner: optax.GradientTransformation, fused: re.Pattern, maps: int
) -> optax.GradientTransformation:
    """`inner` as if the outputs of fused kernels, `[..., maps x out]`, had an axis for the maps.

    The state keeps the shapes of the parameters, by which it is sharded and stored.
    """

    def reshaped(tree: Any, split: bool) -> Any:
        def one(keys: tuple, leaf: Any) -> Any:
            names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
            if not any(fused.match(name) and name.endswith("kernel") for name in names):
                return leaf
            if split:
                return leaf.reshape(*leaf.shape[:-1], maps, leaf.shape[-1] // maps)
            return leaf.reshape(*leaf.shape[:-2], leaf.shape[-2] * leaf.shape[-1])

        return jax.tree_util.tree_map_with_path(one, tree)

    def init(params: dict) -> optax.OptState:
        return reshaped(inner.init(reshaped(params, True)), False)

    def update(updates: dict, state: optax.OptState, params: dict | None = None) -> tuple:
        trees = (reshaped(tree, True) for tree in (updates, state, params))
        return tuple(reshaped(tree, False) for tree in inner.update(*trees))

    return optax.GradientTransformation(init, update)


def _scale(updates: dict, scales: dict[str, float]) -> dict:
    return {path: update * scales[path] for path, update in updates.items()}
