"""NumPy twins of the entity path, which has no reference implementation.

Written from the paper (eqs. 3 to 6) and the decisions of docs/decisions.md alone, in float64, one
entity at a time: what a mask hides is left out here, not hidden. Weights are dictionaries by path.
"""

import numpy as np
from scipy.special import erf


def part(weights: dict, prefix: str, layer: int | None = None) -> dict:
    """The weights below a prefix; of a stack those of one layer."""
    found = {
        path.removeprefix(f"{prefix}."): value
        for path, value in weights.items()
        if path.startswith(f"{prefix}.")
    }
    return found if layer is None else {path: value[layer] for path, value in found.items()}


def linear(weights: dict, name: str, x):
    return x @ weights[f"{name}.kernel"] + weights.get(f"{name}.bias", 0.0)


def norm(weights: dict, name: str, x, eps: float = 1e-5):
    centered = x - x.mean(-1, keepdims=True)
    normal = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + eps)
    return normal * weights[f"{name}.scale"] + weights[f"{name}.bias"]


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def attend(query, key, value, heads: int):
    """`[n, heads * d]`, `[m, heads * d]` twice `-> [n, heads * d]`; 0 without keys."""
    if not len(key):
        return np.zeros_like(query)
    outputs = []
    for q, k, v in zip(*(np.split(x, heads, -1) for x in (query, key, value)), strict=True):
        logits = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
        outputs.append(logits / logits.sum(-1, keepdims=True) @ v)
    return np.concatenate(outputs, -1)


def adapter(weights: dict, name: str, x):
    """`LN -> Linear -> GELU -> Linear`, or one linear map where the variant has no more."""
    if f"{name}.kernel" in weights:
        return linear(weights, name, x)
    own = part(weights, name)
    return linear(own, "project", gelu(linear(own, "expand", norm(own, "norm", x))))


def query_former(weights: dict, tokens, heads: int):
    """Eq. 4: `[j, d] -> [q, d]`."""
    x = weights["queries"]
    for layer in range(len(weights["layers.query.kernel"])):
        own = part(weights, "layers", layer)
        seen = norm(own, "norm_tokens", tokens)
        query = linear(own, "query", norm(own, "norm_queries", x))
        found = attend(query, linear(own, "key", seen), linear(own, "value", seen), heads)
        x = x + linear(own, "output", found)
        x = x + linear(own, "mlp_out", gelu(linear(own, "mlp_in", norm(own, "norm_mlp", x))))
    return norm(weights, "norm", x)


def appearance(weights: dict, variant: str, heads: int, references: list[dict], human: bool):
    """Eqs. 3 and 4: personalization tokens of one entity and which there are, `[q, d]`, `[q]`.

    A reference holds `dino`, and its features `prior: (tokens, vector)` or None; without any it
    is None. `rows` is how many prior tokens there is room for.
    """
    name = "face" if human and variant != "dino_reid" else "object"
    sources = weights.get("sources", np.zeros((3, 1)))
    tokens, there = [], []
    for reference in references:
        rows, image = reference["rows"], reference["dino"]
        found = np.zeros((0 if variant == "dino" else rows + 1, len(weights["image.bias"])))
        has = np.zeros(len(found), bool)
        if variant != "dino" and reference["prior"] is not None:
            grid, vector = reference["prior"]
            adapted = adapter(weights, f"{name}.map", grid)
            adapted = adapted + weights.get(f"{name}.positions", 0.0)
            found[: len(grid)], has[: len(grid)] = adapted + sources[0], True
            found[rows], has[rows] = adapter(weights, f"{name}.vector", vector) + sources[1], True
        tokens += [found, linear(weights, "image", image) + sources[2]]
        there += [has, np.full(len(image), reference["there"])]
    tokens, there = np.concatenate(tokens), np.concatenate(there)
    if variant == "dpe":
        p = query_former(part(weights, "query_former"), tokens[there], heads)
        there = np.full(len(p), there.any())
        return p * there.any(), there
    return np.where(there[:, None], tokens, 0), there


def motion_tokens(weights: dict, motion_map, splat, path, on):
    """`[t, d]`: the map where the entity is, and a Fourier code of its path; 0 where it is not."""
    frequencies = weights["path_in.kernel"].shape[0] // 8
    m = np.zeros((len(on), weights["path_in.kernel"].shape[1]))
    for k in np.flatnonzero(on):
        pooled = sum(
            splat[k, y, x] * motion_map[k, y, x] / splat[k].sum()
            for y, x in np.ndindex(splat[k].shape)
        )
        angles = [[np.pi * 2**j * value for j in range(frequencies)] for value in path[k]]
        code = np.concatenate([[*np.sin(row), *np.cos(row)] for row in angles])
        hidden = gelu(linear(weights, "path_in", code))
        m[k] = linear(weights, "pooled", pooled) + linear(weights, "path_out", hidden)
    return m


def gated_binding(weights: dict, heads: int, p, p_mask, m, on, words, word_mask):
    """Eq. 5 for one entity: what is added to p and to m; 0 where nothing is."""
    frequencies = 10000.0 ** (-np.arange(m.shape[1] // 2) / (m.shape[1] // 2))
    place = np.arange(len(m))[:, None] * frequencies
    place = np.concatenate([np.cos(place), np.sin(place)], -1)
    p_kind, m_kind, word_kind = weights["modalities"]
    tokens = np.concatenate(
        [
            (norm(weights, "norm_personalization", p) + p_kind)[p_mask],
            (norm(weights, "norm_motion", m) + m_kind + place)[on],
            (norm(weights, "norm_words", words) + word_kind)[word_mask],
        ]
    )
    found = attend(*(linear(weights, name, tokens) for name in ("query", "key", "value")), heads)
    found = linear(weights, "output", found)

    def gated(name, x):
        if f"{name}.alpha" in weights:
            return np.tanh(weights[f"{name}.alpha"]) * linear(weights, f"{name}.value", x)
        opening = 1 / (1 + np.exp(-linear(weights, f"{name}.gate", x)))
        return opening * linear(weights, f"{name}.value", x)

    delta_p, delta_m = np.zeros_like(p), np.zeros_like(m)
    count = p_mask.sum()
    delta_p[p_mask] = gated("gate_personalization", found[:count])
    delta_m[on] = gated("gate_motion", found[count : count + on.sum()])
    return delta_p, delta_m


def linear_binding(weights: dict, p, p_mask, m, on, words):
    """Table 3's comparison: what is added to p. `words` are 0 where there is none."""
    mean = m[on].mean(0) if on.any() else np.zeros(m.shape[1])
    rest = np.concatenate([mean, *words])
    added = np.stack([linear(weights, "merge", np.concatenate([row, rest])) for row in p])
    return np.where(p_mask[:, None], added, 0)


def scatter(weights: dict, motion_map, splats, deltas, ons):
    """The map of one sample after all its entities have written to it."""
    motion_map = motion_map.copy()
    for splat, delta, on in zip(splats, deltas, ons, strict=True):
        for k in np.flatnonzero(on):
            motion_map[k] += splat[k][..., None] * linear(weights, "to_map", delta[k])
    return motion_map


def contrast_head(weights: dict, name: str, tokens, mask):
    """Projected mean of the tokens that are there, of length 1."""
    if not mask.any():
        return np.zeros(weights[f"{name}.kernel"].shape[1])
    x = linear(weights, name, tokens[mask].mean(0))
    return x / np.sqrt((x**2).sum() + 1e-12)


def contrastive_loss(p, m, temperature: float) -> float:
    """Half the sum of eq. 6's two means, over entities that take part, `[n, c]` each."""
    if len(p) < 2:
        return 0.0
    both = 0.0
    for ours, theirs in ((p, m), (m, p)):
        for i in range(len(p)):
            scores = np.exp([ours[i] @ other / temperature for other in theirs])
            both -= np.log(scores[i] / scores.sum()) / len(p)
    return both / 2


def cross_attention(weights: dict, heads: int, video, tokens):
    """What references add to video tokens `[n, c]`; `tokens` are those that there are, `[j, d]`."""
    video, tokens = norm(weights, "token_norm", video), norm(weights, "key_token_norm", tokens)
    query, key, value = (
        linear(weights, name, x)
        for name, x in (("query", video), ("key", tokens), ("value", tokens))
    )

    def by_head(name, x):
        heads_of_x = np.split(x, heads, -1)
        return np.concatenate([norm(weights, name, head, 1e-6) for head in heads_of_x], -1)

    found = attend(by_head("query_norm", query), by_head("key_norm", key), value, heads)
    return found @ weights["output.kernel"]
