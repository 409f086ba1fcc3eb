"""Panels of what the model does with an entity: binding, gates, cross-attention, retrieval."""

import numpy as np
from PIL import Image, ImageDraw

from tora2_jax.inspection.panels_inputs import cell_of, entity_color, frames_width
from tora2_jax.inspection.views import (
    MODALITIES,
    BindingView,
    BlocksView,
    ChangeView,
    EntityView,
    Inspection,
    modality_slices,
)
from tora2_jax.media import drawing
from tora2_jax.media.drawing import INK, SMALL

_MATRIX = 330  # pixels of the side of the whole attention
_BINS = 20


def binding(inspection: Inspection, entity: EntityView) -> list[Image.Image]:
    """The binder's attention, coarse and fine, its gates and what it changes."""
    view = entity.binding
    if entity.change is None:
        model = inspection.model
        parts = {"motion": model.motion, "personalization": model.personalization}
        missing = [name for name, part in parts.items() if part is None] or ["binding"]
        reason = f"{model.name} has no {' and no '.join(missing)} part, so nothing is bound"
        return [drawing.panel("binding", "", drawing.nothing(420, 60, reason))]
    if view is None:
        reason = f"variant {inspection.model.binding.variant}: no attention, no gates"
        content = drawing.stacked([drawing.nothing(420, 60, reason), _changes(entity.change)])
        return [drawing.panel("binding", "", content)]
    return [_attention(view), _words_over_time(entity, view), _gates(view, entity.change)]


def _attention(view: BindingView) -> Image.Image:
    table = drawing.heat_map(
        view.summary, (58, 34), (0, 1), rows=MODALITIES, columns=MODALITIES, write=True
    )
    starts = [part.start for part in modality_slices(view.counts)]
    count = sum(view.counts)
    values = np.where(view.mask[:, None], view.attention, np.nan)
    values[:, ~view.mask] = np.nan
    high = float(np.nanmax(values)) if view.mask.any() else 1.0
    cell = max(3, _MATRIX // count)
    whole = drawing.heat_map(values, (cell, cell), (0, high), separators=(starts[1:], starts[1:]))
    sizes = ", ".join(
        f"{name} {number}" for name, number in zip(MODALITIES, view.counts, strict=True)
    )
    bar = drawing.color_bar(0, high, 200, "weight of a token; gray: masked")
    left = drawing.stacked([table, drawing.text_block(f"tokens: {sizes}", 220, SMALL)], 10)
    content = drawing.beside([left, drawing.stacked([whole, bar], 6)], 24)
    explanation = (
        "Rows look at columns, mean over heads. Left: how much of its attention a modality "
        "(p references, m path, c word) gives to each; rows sum to 1. Right: token by token."
    )
    return drawing.panel("binder: attention between the modalities", explanation, content)


def _words_over_time(entity: EntityView, view: BindingView) -> Image.Image:
    """What each token frame of the path looks at: the word's tokens, p and m as a whole."""
    p, m, c = modality_slices(view.counts)
    rows, there = view.attention[m], view.mask[m]
    kept = entity.word_tokens.kept
    values = np.concatenate(
        [rows[:, p].sum(1, keepdims=True), rows[:, m].sum(1, keepdims=True), rows[:, c]], 1
    )[:, : 2 + max(len(kept), 1)]
    values = np.where(there[:, None], values, np.nan)
    if not kept:
        values[:, 2:] = np.nan
    pieces = [entity.word_tokens.pieces[position].strip("\u2581") for position in kept] or ["c"]
    labels = ["all p", "all m", *(piece[:9] for piece in pieces)]
    wide = max(44, *(drawing.text_width(label, SMALL) + 8 for label in labels))
    tall = 24 if len(rows) < 16 else 14
    numbers = [f"m {frame}" for frame in range(len(rows))]
    picture = drawing.heat_map(
        values,
        (wide, tall),
        (0, 1),
        rows=numbers,
        columns=labels,
        write=True,
        separators=((), (2,)),
    )
    explanation = "What the path's token of each token frame looks at; gray: no path there."
    return drawing.panel("binder: path to word", explanation, picture)


def _gates(view: BindingView, change: ChangeView) -> Image.Image:
    p, m, _ = modality_slices(view.counts)
    parts = [
        _gate("G_p, on the references' tokens", view.gate_p, view.mask[p], "p", view.alpha),
        _gate("G_m, on the path's tokens", view.gate_m, view.mask[m], "m", view.alpha),
    ]
    explanation = (
        "A row is a token, the axis is how far its gate is open; dark: many channels, red: the "
        "mean. Below: the size of the change over the size of what is changed."
    )
    content = drawing.stacked([drawing.beside(parts, 20), _changes(change)], 12)
    return drawing.panel("binder: gates and what they let through", explanation, content)


def _gate(title: str, gate: np.ndarray, there: np.ndarray, name: str, alpha: bool) -> Image.Image:
    """The distribution over channels of every token's gate."""
    if not there.any():
        return drawing.captioned(drawing.nothing(200, 60, "no tokens: masked"), title)
    if alpha:
        text = f"{title}: tanh(alpha) = {float(gate.flat[0]):+.4f}"
        return drawing.text_block(text, 200)
    counts = np.stack([np.histogram(row, _BINS, (0, 1))[0] for row in gate]) / gate.shape[1]
    values = np.where(there[:, None], counts, np.nan)
    tall = max(5, min(18, 200 // len(gate)))
    labels = [f"{name} {index}" for index in range(len(gate))] if tall > 11 else [name]
    picture = drawing.heat_map(
        values,
        (8, tall),
        (0, float(np.nanmax(values))),
        rows=labels,
        columns=("0", "0.5", "1"),
        axis=True,
    )
    draw = ImageDraw.Draw(picture)
    left = max(drawing.text_width(label, SMALL) for label in labels) + 6
    for row in np.flatnonzero(there):
        x, y = left + 8 * _BINS * gate[row].mean(), 16 + row * tall
        draw.line((x, y, x, y + tall - 1), fill=(214, 40, 40), width=2)
    low, middle, high = np.quantile(gate[there], (0.05, 0.5, 0.95))
    below = f"mean {gate[there].mean():.2f}; 5 %, 50 %, 95 %: {low:.2f}, {middle:.2f}, {high:.2f}"
    return drawing.captioned(picture, title, below)


def _changes(change: ChangeView) -> Image.Image:
    lines = (
        ("|delta p| / |p|", change.p),
        ("|delta m| / |m|", change.m),
        ("|delta M| / |M|, whole map", change.map),
        ("|delta M| / |M|, where it is", change.map_here),
    )
    sheet = drawing.blank(320, 18 * len(lines))
    draw = ImageDraw.Draw(sheet)
    for index, (name, value) in enumerate(lines):
        draw.text((0, 18 * index), name, fill=INK, font=drawing.font())
        text = "-" if np.isnan(value) else f"{value:.3g}"
        draw.text((318, 18 * index), text, fill=INK, font=drawing.font(), anchor="ra")
    return sheet


def blocks(inspection: Inspection, entity: EntityView) -> list[Image.Image]:
    """Who is looked at in each DiT block, what this entity adds there, and where."""
    view = entity.strongest
    if view is None:
        reason = f"{inspection.model.name} has no personalization part, so no cross-attention"
        return [drawing.panel("cross-attention", "", drawing.nothing(420, 60, reason))]
    labels = [str(block) for block in view.blocks]
    size = (max(240, 12 * len(labels)), 110)
    shares = _shares(inspection, view, labels, size)
    added = _added(inspection, entity, view, labels, size)
    return [*_effect(entity), shares, added, _where(entity, view)]


def _effect(entity: EntityView) -> list[Image.Image]:
    """What its references change, by timestep and way in."""
    view = entity.effect
    if view is None:
        return []
    ways = {
        "both": view.both,
        "cross-attention": view.cross_attention,
        "motion map": view.motion_map,
    }
    most = max(max(values.max() for values in ways.values()), 1e-3)
    labels = [str(time) for time in view.timesteps]
    color = entity_color(entity.index)
    charts = [
        drawing.captioned(
            drawing.bars(values[None], labels, [color], most=most, size=(150, 90), unit="{:.2g}"),
            title,
        )
        for title, values in ways.items()
    ]
    explanation = (
        f"By timestep: how far the predicted velocity moves where {entity.word} is, over its size, "
        "when its references are kept from both ways in or from one. Looks are chosen at large "
        "timesteps; at small ones the picture is there already."
    )
    content = drawing.beside(charts, 16)
    return [drawing.panel("references: what they change", explanation, content)]


def _shares(inspection: Inspection, view: BlocksView, labels, size) -> Image.Image:
    """Bars of all entities, this one's on its splat as a line."""
    colors = [entity_color(other.index) for other in inspection.entities]
    names = [other.word for other in inspection.entities]
    chart = drawing.bars(view.shares.T, labels, colors, most=1.0, size=size)
    content = drawing.stacked([chart, drawing.legend(names, colors, size[0])])
    explanation = (
        f"Per DiT block, at timestep {view.timestep}: how the video tokens share their attention "
        "among the entities' references. An empty bar: there are none."
    )
    return drawing.panel("cross-attention: who is looked at", explanation, content)


def _added(inspection: Inspection, entity: EntityView, view: BlocksView, labels, size):
    color = entity_color(entity.index)
    chart = drawing.bars(
        view.added[None], labels, [color], size=size, marks=view.added_here, unit="{:.2g}"
    )
    lines = [chart]
    if not view.added.any():
        zero = "W_o is zero (untrained)" if inspection.zeros.cross_attention else "nothing is added"
        lines.append(drawing.text_block(zero, size[0], SMALL))
    explanation = (
        f"Per DiT block: what {entity.word}'s references add to a video token, over the token's "
        "own size. Bar: mean of all tokens; line: on its path."
    )
    return drawing.panel("cross-attention: what it adds", explanation, drawing.stacked(lines))


def _where(entity: EntityView, view: BlocksView) -> Image.Image:
    """This entity's share at every place, with its mean place marked."""
    path, (rows, columns) = entity.path, view.where.shape[1:]
    cell = cell_of(rows, columns)
    low, high = float(view.where.min()), float(view.where.max())
    frames = []
    for frame, values in enumerate(view.where):
        picture = drawing.heat_map(values, (cell, cell), (low, high))
        if path.on[frame]:
            x, y = path.path[frame, :2] * (columns * cell, rows * cell) + 1
            radius = max(cell, 6)
            circle = (x - radius, y - radius, x + radius, y + radius)
            ImageDraw.Draw(picture).ellipse(circle, outline=(214, 40, 40), width=2)
        frames.append(drawing.captioned(picture, f"token frame {frame}"))
    bar = drawing.color_bar(low, high, 300, "share, mean of blocks")
    content = drawing.stacked([drawing.flowing(frames, frames_width(frames)), bar])
    explanation = (
        f"Where video tokens look at {entity.word}'s references; the circle is its place. The "
        "scale is stretched to the values that there are."
    )
    return drawing.panel("cross-attention: where it is looked at", explanation, content)


def retrieval(inspection: Inspection, entity: EntityView) -> Image.Image | None:
    """Cosines of all references and paths, before and after binding."""
    found = inspection.retrieval
    if found is None:
        return None
    words = [other.word[:10] for other in inspection.entities]
    both = found.takes_part[:, None] & found.takes_part
    wide = max(46, *(drawing.text_width(f"m {word}", SMALL) + 8 for word in words))
    tables = []
    for title, values in (("before binding", found.before), ("after binding", found.after)):
        table = drawing.heat_map(
            np.where(both, values, np.nan),
            (wide, 30),
            (-1, 1),
            scale=drawing.SIGNED,
            rows=[f"p {word}" for word in words],
            columns=[f"m {word}" for word in words],
            write=True,
            separators=((entity.index, entity.index + 1), ()),
        )
        tables.append(drawing.captioned(table, title))
    bar = drawing.color_bar(-1, 1, 300, "cosine", drawing.SIGNED)
    content = drawing.stacked([drawing.flowing(tables, 620, 24), bar])
    explanation = (
        "Contrastive embeddings: references (rows) against paths (columns); the diagonal should be "
        "highest. After binding both sides may share a code that says nothing about looks or "
        "motion. Gray: lacks a reference or a path."
    )
    return drawing.panel("retrieval: references against paths", explanation, content)
