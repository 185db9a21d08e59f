"""The same small language model with each activation, on the plays of Shakespeare.

    python -m experiments.fundamentals.activations_shakespeare
    python -m experiments.fundamentals.activations_shakespeare --names gelu swiglu
    python -m experiments.fundamentals.activations_shakespeare --dataset generated

A network tells the next letter from the sixteen before it, whose vectors stand side by side
(Bengio et al., "A Neural Probabilistic Language Model", JMLR 2003,
https://www.jmlr.org/papers/v3/bengio03a.html), through the feedforward blocks of a
transformer: norm, dense, activation, dense, residual. Nothing changes but the activation, of
which there are thirty-two: from none and the perceptron's threshold to the gates of today's
language models. A gate makes one number of two, and so does maxout; their layers have two
thirds of the width, so that numbers of parameters agree within one in a hundred (Shazeer,
https://arxiv.org/abs/2002.05202, section 3). The seeds learn side by side, and each gives
all activations the same first weights and the same batches, so that losses can be compared
seed by seed.

Printed, and drawn in `losses.png`: the loss on the last tenth of the text in nats per
letter; and by how much it differs from ReLU's, mean and standard error over the seeds. A run
that was killed goes on with the activation at which it stopped.

Measured (three seeds; JAX 0.10.2; an activation took 11 to 200 seconds, on two busy cores,
with its compilation): the difference to ReLU, whose loss is 2.0759, and its standard error.

    geglu           -0.0510 +- 0.0053    hard silu     +0.0021 +- 0.0042
    swiglu          -0.0504 +- 0.0049    tanh          +0.0121 +- 0.0032
    bilinear        -0.0417 +- 0.0082    maxout        +0.0189 +- 0.0031
    reglu           -0.0387 +- 0.0053    prelu         +0.0385 +- 0.0010
    relu squared    -0.0251 +- 0.0020    softsign      +0.0490 +- 0.0005
    gelu, by tanh   -0.0201 +- 0.0005    rrelu         +0.0630 +- 0.0020
    gelu            -0.0201 +- 0.0005    sigmoid       +0.0653 +- 0.0015
    hard tanh       -0.0077 +- 0.0057    softplus      +0.0668 +- 0.0012
    swish, learned  -0.0050 +- 0.0019    hard sigmoid  +0.0675 +- 0.0002
    mish            -0.0012 +- 0.0023    elu           +0.0718 +- 0.0042
    relu6           -0.0008 +- 0.0010    celu          +0.0718 +- 0.0042
    leaky relu      +0.0005 +- 0.0005    selu          +0.1006 +- 0.0019
    glu             +0.0011 +- 0.0035    none          +0.1987 +- 0.0037
    silu            +0.0015 +- 0.0023
    step            +0.1751 +- 0.0053, with the slope of sigmoid +0.0413 +- 0.0032,
                                       straight through +0.2297 +- 0.0098
    sign            with the slope of arctan +0.0110 +- 0.0043
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from jaxml import draw, nn, train
from jaxml.data.catalog import data_folder
from jaxml.typing import Array

PLAIN: dict[str, Callable[[Array], Array]] = {
    "none": jax.nn.identity,
    "step": nn.step,
    "step, straight through": partial(nn.step, slope="straight_through"),
    "step, slope of sigmoid": partial(nn.step, slope="sigmoid"),
    "sign, slope of arctan": partial(nn.sign, slope="arctan"),
    "sigmoid": jax.nn.sigmoid,
    "hard sigmoid": jax.nn.hard_sigmoid,
    "tanh": jnp.tanh,
    "hard tanh": jax.nn.hard_tanh,
    "softsign": jax.nn.soft_sign,
    "softplus": jax.nn.softplus,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "celu": jax.nn.celu,
    "gelu": nn.gelu,
    "gelu, by tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
    "hard silu": jax.nn.hard_silu,
    "mish": jax.nn.mish,
    "relu squared": nn.relu_squared,
}
GATES: dict[str, Callable[[Array], Array]] = {
    "bilinear": partial(nn.gated, activation=jax.nn.identity),
    "glu": nn.gated,
    "reglu": partial(nn.gated, activation=jax.nn.relu),
    "geglu": partial(nn.gated, activation=nn.gelu),
    "swiglu": partial(nn.gated, activation=jax.nn.silu),
    "maxout": partial(nn.maxout, pieces=2),
}
"""Two numbers in, one out."""
OWN = ("prelu", "swish, learned", "rrelu")
"""With parameters, or noise, of their own."""
NAMES = (*PLAIN, *OWN, *GATES)


@dataclass(frozen=True)
class Config:
    """One language model, thirty activations."""

    names: tuple[str, ...] = ()
    """Which activations; all of them by default."""
    dataset: str = "tinyshakespeare"
    """A folder of the data folder with `input.txt`, or `generated`."""
    num_seeds: int = 3
    """Networks of each, that learn side by side."""
    num_steps: int = 400
    """Updates of each."""
    batch_size: int = 512
    """Letters to be told in an update."""
    length: int = 16
    """Letters before each, that are seen."""
    width: int = 64
    """Of the stream."""
    depth: int = 2
    """Blocks."""
    learning_rate: float = 1e-2
    """Of AdamW, at its highest."""
    seed: int = 0
    """Of weights and batches."""
    data_dir: Path | None = None
    """Folder of the original files; by default the one JAXML_DATA_DIR names."""
    out: Path = Path("runs/activations_shakespeare")
    """Where everything is written; a run found there is continued."""


SMOKE = Config(
    names=("rrelu", "swiglu"),
    dataset="generated",
    num_seeds=2,
    num_steps=4,
    batch_size=2,
    length=6,
    width=8,
    depth=1,
)
TEST = 8192
"""Letters of the last tenth that are told."""


class Feedforward(linen.Module):
    """Two dense layers with an activation between them; all have as many parameters."""

    activation: str

    @linen.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        name, hidden = self.activation, 4 * x.shape[-1]
        y = nn.Dense(2 * (2 * hidden // 3) if name in GATES else hidden)(x)
        y = self.own(y, train) if name in OWN else {**PLAIN, **GATES}[name](y)
        return nn.Dense(x.shape[-1])(y)

    def own(self, y: Array, train: bool) -> Array:
        if self.activation == "prelu":
            return nn.PReLU()(y)
        if self.activation == "rrelu":
            return nn.rrelu(y, self.make_rng("noise") if train else None)
        return nn.swish(y, self.param("beta", linen.initializers.ones, ()))


class LanguageModel(linen.Module):
    """The next letter from those before it; nothing but the blocks is not linear."""

    letters: int
    width: int
    depth: int
    activation: str

    @linen.compact
    def __call__(self, seen: Array, *, train: bool) -> Array:
        x = linen.Embed(self.letters, self.width // 4)(seen)
        x = nn.Dense(self.width)(x.reshape(len(x), -1))
        for _ in range(self.depth):
            x = x + Feedforward(self.activation)(linen.LayerNorm()(x), train=train)
        return nn.Dense(self.letters)(linen.LayerNorm()(x))


def text(config: Config) -> str:
    """What is read."""
    if config.dataset == "generated":
        words = "to be or not that is the question whether it nobler in mind suffer"
        return " ".join(np.random.default_rng(0).choice(words.split(), 4000))
    folder = data_folder(config.data_dir) or Path(".")
    path = folder / config.dataset / "input.txt"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}: name the data folder with --data-dir or "
            "JAXML_DATA_DIR, or take --dataset generated"
        )
    return path.read_text("utf-8")


def main(config: Config) -> Mapping[str, float]:
    """Trains the language model with each activation; returns its losses."""
    names = dict.fromkeys(("relu", *(config.names or NAMES)))
    if unknown := sorted(set(names) - set(NAMES)):
        raise SystemExit(f"names must be among {', '.join(NAMES)}; got {unknown}")
    run = train.Run(config.out, config, ignore=("out", "names"))
    letters, codes = np.unique(list(text(config)), return_inverse=True)
    losses = {name: found for row in run.rows() for name, found in read(row)}
    print(f"{'':<24}{'loss':>8}{'less ReLU':>11}{'+-':>8}")
    for name in names:
        if name not in losses:
            found = learn(config, name, jnp.asarray(codes), len(letters))
            run.log(len(losses), {f"{name}/{i}": loss for i, loss in enumerate(found)})
            losses[name] = np.array(found)
        print(line(name, losses), flush=True)
    order = sorted(losses, key=lambda name: losses[name].mean())
    print("\nbest first\n" + "\n".join(line(name, losses) for name in order))
    draw.save_bars(
        run.path / "losses.png",
        {name: losses[name] - losses["relu"] for name in order if name != "relu"},
        title="One language model, its activations",
        xlabel=f"nats per letter more than with ReLU ({losses['relu'].mean():.3f})",
        spec=".3f",
    )
    print(f"\npicture: {run.path / 'losses.png'}")
    return {name: float(losses[name].mean()) for name in order}


def read(row: Mapping[str, float]) -> list[tuple[str, np.ndarray]]:
    """The activation of a report, and its losses by seed."""
    found = [(key.rpartition("/")[0], v) for key, v in row.items() if key != "step"]
    return [(found[0][0], np.array([v for _, v in found]))] if found else []


def line(name: str, losses: Mapping[str, np.ndarray]) -> str:
    """A line of the table."""
    gap = losses[name] - losses["relu"]
    error = gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else np.nan
    return f"{name:<24}{losses[name].mean():8.4f}{gap.mean():+11.4f}{error:8.4f}"


def learn(config: Config, name: str, codes: Array, letters: int) -> list[float]:
    """Trains one network for each seed with an activation: their losses at the end."""
    model = LanguageModel(letters, config.width, config.depth, name)
    warm, steps = config.num_steps // 10, config.num_steps
    peak = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warm, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(peak))
    cut, length = 9 * len(codes) // 10, config.length
    asked = np.linspace(cut, len(codes) - length - 1, TEST).astype(int)

    def windows(codes: Array, places: Any) -> Array:
        return codes[places[:, None] + jnp.arange(length + 1)[None]]

    def loss(params: Any, rows: Array, noise: Any = None) -> Array:
        rngs = {} if noise is None else {"noise": noise}
        learns = noise is not None
        logits = model.apply({"params": params}, rows[:, :-1], train=learns, rngs=rngs)
        lost = optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, -1])
        return lost.mean()

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None, None))
    def learned(key: Any, codes: Array, held_out: Array) -> Array:
        params = model.init(key, held_out[:1, :-1], train=False)["params"]

        def step(carry: Any, number: Array) -> Any:
            params, state = carry
            place_key, noise = jax.random.split(jax.random.fold_in(key, number))
            shape = (config.batch_size,)
            places = jax.random.randint(place_key, shape, 0, cut - length)
            rows = windows(codes, places)
            updates, state = optimizer.update(
                jax.grad(loss)(params, rows, noise), state, params
            )
            return (optax.apply_updates(params, updates), state), None

        start = (params, optimizer.init(params))
        (params, _), _ = jax.lax.scan(step, start, jnp.arange(steps))
        return loss(params, held_out)

    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    losses = learned(keys, codes, windows(codes, asked))
    return np.asarray(losses, np.float64).tolist()


if __name__ == "__main__":
    main(tyro.cli(Config))
