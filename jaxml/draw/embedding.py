"""Features in the plane: the picture that shows whether classes come apart."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from jaxml.draw.canvas import COLOURS, FAINT, INK, PathLike, finish, new_figure, plain
from jaxml.export import export
from jaxml.typing import Array, Float, Int


@export("draw.save_embedding", since="0.1")
def save_embedding(
    path: PathLike,
    features: Float[Array, "samples dim"],
    labels: Int[Array, "samples"],
    class_names: Sequence[str] | None = None,
    *,
    method: Literal["pca", "tsne"] | None = "pca",
    title: str = "",
    max_points: int = 5000,
    seed: int = 0,
) -> Image.Image:
    """Features in the plane, coloured by class, with each class named at its middle.

    Args:
        path: where to write, or None.
        features: any dim of at least 2.
        labels: from 0 up.
        class_names: by default the numbers.
        method: "pca", the two directions of largest variance; "tsne", scikit-learn's
            t-SNE from a PCA start; None, the features themselves, which must have dim 2.
        title: above the picture.
        max_points: more samples than these are thinned at random.
        seed: of the thinning and of t-SNE.

    Raises:
        ValueError: if shapes disagree, a value is not finite, there are fewer than 2
            samples or dims, or a label has no name.
    """
    x, y = np.asarray(features, np.float64), np.asarray(labels)
    if x.ndim != 2 or min(x.shape) < 2:
        raise ValueError(f"features must be at least 2 samples by 2, got {x.shape}")
    if y.shape != x.shape[:1]:
        raise ValueError(f"labels must have shape {x.shape[:1]}, got {y.shape}")
    if not np.isfinite(x).all():
        raise ValueError("features must be finite, got NaN or infinity")
    if method is None and x.shape[1] != 2:
        raise ValueError(f"without a method features must have dim 2, got {x.shape[1]}")
    names = [str(i) for i in range(y.max() + 1)] if class_names is None else class_names
    if y.min() < 0 or y.max() >= len(names):
        raise ValueError(
            f"labels must be in [0, {len(names)}), got {y.min()} to {y.max()}"
        )
    rng = np.random.default_rng(seed)
    if len(x) > max_points:
        chosen = rng.choice(len(x), max_points, replace=False)
        x, y = x[chosen], y[chosen]
    points, axis_names = _plane(x, method, seed)
    figure = new_figure(6.2, 6.2, title)
    ax = plain(figure.add_subplot(), grid=False)
    mixed = rng.permutation(len(points))  # no class lies on top of another
    _scatter(ax, points[mixed], y[mixed], names)
    ax.set_xlabel(axis_names[0], fontsize=10, color=FAINT)
    ax.set_ylabel(axis_names[1], fontsize=10, color=FAINT)
    return finish(figure, path)


def _plane(
    x: np.ndarray, method: str | None, seed: int
) -> tuple[np.ndarray, tuple[str, str]]:
    """The points, and what the two axes are."""
    if method is None:
        return x, ("", "")
    if method == "pca":
        u, s, v = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
        # A direction has no sign: its largest component is positive here.
        sign = np.sign(v[np.arange(2), np.abs(v[:2]).argmax(axis=1)])
        share = np.square(s[:2]) / max(np.square(s).sum(), 1e-30)
        names = [f"principal component {i + 1} ({p:.0%})" for i, p in enumerate(share)]
        return u[:, :2] * s[:2] * sign, (names[0], names[1])
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(x) - 1) / 3)
        tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
        return tsne.fit_transform(x), (
            "t-SNE, distances between clusters mean little",
            "",
        )
    raise ValueError(f"method must be pca, tsne or None, got {method!r}")


def _scatter(
    ax: Axes, points: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> None:
    colours = np.array(COLOURS)[labels % 10]
    size = float(np.clip(25000 / len(points), 6, 40))
    for turn, marker in enumerate(("o", "^", "s", "D", "v", "P")):  # ten classes each
        mine = labels // 10 % 6 == turn
        ax.scatter(
            *points[mine].T,
            s=size,
            c=colours[mine],
            marker=marker,
            alpha=0.75,
            linewidths=0,
        )
    for label in np.unique(labels):
        x, y = np.median(points[labels == label], axis=0)
        frame = {"boxstyle": "round,pad=0.25", "facecolor": "white", "alpha": 0.9}
        frame["edgecolor"] = COLOURS[label % 10]
        text = ax.text(x, y, names[label], ha="center", va="center", fontsize=10.5)
        text.set(color=INK, weight="bold", bbox={**frame, "linewidth": 1.6})
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_aspect("equal", adjustable="datalim")
