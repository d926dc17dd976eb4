"""A transformer: methods beside each other on a small decoder of text.

  python -m experiments decoder --scale smoke|cpu|paper

The paper has no transformer. Here a decoder predicts the next character of the texts on
Python's language that come with Python (``pydoc_data.topics``); embeddings and layer
norms are not pruned. What is measured is the loss on the last tenth of the text, in bits a
character.
"""

import dataclasses
import functools
import hashlib
import importlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

import synflow_jax as sj
from experiments.figures import decoder as figures
from experiments.harness import command
from experiments.harness.sweeps import Context, Row
from experiments.training import steps

METHODS = ("synflow", "magnitude", "snip", "erk")


class Decoder(nn.Module):
    """Blocks of causal attention and a dense layer, each after layer norm.

    Attributes:
      characters: different ones.
      width: of a character's vector.
      blocks, heads: how many.
      length: characters that it sees.
    """

    characters: int
    width: int = 96
    blocks: int = 2
    heads: int = 4
    length: int = 64

    @nn.compact
    def __call__(
        self, x: Int[Array, "batch time"]
    ) -> Float[Array, "batch time characters"]:
        places = jnp.arange(x.shape[1])
        h = nn.Embed(self.characters, self.width, name="embed")(x)
        h = h + nn.Embed(self.length, self.width, name="places")(places)[None]
        for i in range(1, self.blocks + 1):
            y = nn.LayerNorm(name=f"attention_norm{i}")(h)
            mask = nn.make_causal_mask(x)
            attend = nn.MultiHeadDotProductAttention(self.heads, name=f"attention{i}")
            h = h + attend(y, mask=mask)
            y = nn.LayerNorm(name=f"dense_norm{i}")(h)
            y = nn.gelu(nn.Dense(4 * self.width, name=f"dense{i}_in")(y))
            h = h + nn.Dense(self.width, name=f"dense{i}_out")(y)
        return nn.Dense(self.characters, name="logits")(nn.LayerNorm(name="norm")(h))


class Text(NamedTuple):
    """Characters as numbers.

    Attributes:
      train, test: the first nine tenths and the last.
      characters: different ones.
      sha256: of the text, which is another one in other versions of Python.
    """

    train: np.ndarray
    test: np.ndarray
    characters: int
    sha256: str


@functools.cache
def text() -> Text:
    """The texts on Python's language, one after the other."""
    topics = importlib.import_module("pydoc_data.topics").topics
    whole = "\n".join(topics[name] for name in sorted(topics))
    _, numbers = np.unique(np.array(list(whole)), return_inverse=True)
    numbers = numbers.astype(np.int32)
    cut = 9 * len(numbers) // 10
    digest = hashlib.sha256(whole.encode()).hexdigest()
    return Text(numbers[:cut], numbers[cut:], int(numbers.max()) + 1, digest)


@dataclasses.dataclass(frozen=True)
class Run:
    """One method at one compression, trained from several seeds.

    Attributes:
      method: one of ``METHODS``, or dense.
      compression: log10 of (weights / weights kept).
      seeds: of the weights and the training; trained as one program.
      width, blocks, length: of the decoder.
      steps, batch: of the training.
      rate: the highest of AdamW; with a warm-up over a tenth, and a cosine to zero.
      rounds: of SynFlow.
    """

    method: str
    compression: float
    seeds: tuple[int, ...]
    width: int = 96
    blocks: int = 2
    length: int = 64
    steps: int = 600
    batch: int = 32
    rate: float = 3e-3
    rounds: int = 100

    @property
    def name(self) -> str:
        return f"decoder-{self.method}-{self.compression:g}"


def runs(scale: command.Scale) -> list[Run]:
    """The runs of a scale; paper has a larger decoder and more steps."""
    if scale == "smoke":
        small = {"width": 16, "blocks": 1, "length": 16, "steps": 10, "rounds": 5}
        return [Run("dense", 0.0, (0, 1), **small), Run("synflow", 1.0, (0, 1), **small)]
    seeds = (0, 1, 2)
    more = {"width": 384, "blocks": 6, "length": 256, "steps": 20_000}
    more = more if scale == "paper" else {}
    return [
        Run("dense", 0.0, seeds, **more),
        *(Run(m, c, seeds, **more) for c in (0.5, 1.0, 1.5, 2.0) for m in METHODS),
    ]


def execute(run: Run, context: Context) -> Iterator[Row]:
    """A row for each seed: bits a character before training and after it."""
    data = text()
    module = Decoder(data.characters, run.width, run.blocks, length=run.length)
    starts = [_pruned(run, module, data, jax.random.key(seed), seed) for seed in run.seeds]
    params, masks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    params, losses = jax.vmap(functools.partial(_trained, run, module, data.train))(
        params, masks, jnp.array(run.seeds)
    )
    bits = jax.vmap(functools.partial(_bits, module, data.test, run.length))(params)
    for i, seed in enumerate(run.seeds):
        yield {
            "kind": "trained",
            "method": run.method,
            "compression": run.compression,
            "seed": seed,
            "kept": int(sj.count(steps.kernels(*starts[i]))),
            "bits": round(float(bits[i]), 4),
            "first_bits": round(float(losses[i, 0]) / math.log(2), 4),
            "text": data.sha256[:16],
        }


def _loss(module: Decoder, params: PyTree, x: Int[Array, "batch time"]) -> Float[Array, ""]:
    """The mean cross-entropy of the next character, in nats."""
    logits = module.apply({"params": params}, x[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, x[:, 1:]).mean()


def _batch(data: Array, length: int, batch: int, key: Array) -> Int[Array, "batch time"]:
    """Parts of the text that start anywhere."""
    starts = jax.random.randint(key, (batch, 1), 0, len(data) - length)
    return data[starts + jnp.arange(length + 1)[None]]


def _pruned(
    run: Run, module: Decoder, data: Text, key: Array, seed: int
) -> tuple[PyTree, PyTree]:
    """Initial weights, and masks by the method."""
    shape = jax.ShapeDtypeStruct((1, run.length), jnp.int32)
    params = module.init(key, jnp.zeros((1, run.length), jnp.int32))["params"]
    if run.method == "dense":
        return params, sj.all_kept(params)
    keys = jax.random.split(jax.random.fold_in(key, 1), 4)
    train = jnp.asarray(data.train)
    batches = jnp.stack([_batch(train, run.length, run.batch, k) for k in keys])
    criteria = {
        "synflow": lambda: sj.synflow(
            lambda params, x: module.apply({"params": params}, x), shape
        ),
        "magnitude": sj.magnitude,
        "snip": lambda: sj.snip(functools.partial(_loss, module), batches),
        "erk": lambda: sj.random(keys[0]),
    }
    masks, _ = sj.prune(
        criteria[run.method](),
        params,
        10.0**-run.compression,
        rounds=run.rounds if run.method == "synflow" else 1,
        allocation=sj.erk if run.method == "erk" else None,
        keep_connected=False,
    )
    return params, masks


def _optimizer(run: Run, masks: PyTree = None) -> optax.GradientTransformation:
    warmup = 1 + run.steps // 10
    rate = optax.warmup_cosine_decay_schedule(
        run.rate / (warmup + 1), run.rate, warmup, run.steps + 1
    )
    return optax.chain(optax.adamw(rate, weight_decay=0.01), sj.freeze_pruned(masks))


def _trained(
    run: Run, module: Decoder, train: np.ndarray, params: PyTree, masks: PyTree, seed: Array
) -> tuple[PyTree, Float[Array, " steps"]]:
    """The parameters after training under masks, and the loss of every step in nats."""
    data, key = jnp.asarray(train), jax.random.fold_in(jax.random.key(seed), 2)
    params = sj.apply_masks(params, masks)

    def step(carry, number):
        params, state = carry
        x = _batch(data, run.length, run.batch, jax.random.fold_in(key, number))
        loss, gradients = jax.value_and_grad(functools.partial(_loss, module))(params, x)
        updates, state = _optimizer(run).update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), loss

    state = _optimizer(run, masks).init(params)
    (params, _), losses = jax.lax.scan(step, (params, state), jnp.arange(run.steps))
    return params, losses


@functools.partial(jax.jit, static_argnums=(0, 2))
def _bits(
    module: Decoder, test: np.ndarray, length: int, params: PyTree
) -> Float[Array, ""]:
    """Bits a character on held-out text, cut into parts that are not shuffled."""
    parts = (len(test) - 1) // length
    places = length * jnp.arange(parts)[:, None] + jnp.arange(length + 1)[None]
    x = jnp.asarray(test)[places]
    groups = x[: parts - parts % 32].reshape(-1, 32, length + 1)
    losses = jax.lax.map(functools.partial(_loss, module, params), groups)
    return losses.mean() / math.log(2)


EXPERIMENT = command.Experiment(
    name="decoder",
    about="Methods beside each other on a small transformer that predicts text.",
    runs=runs,
    execute=execute,
    figures={"decoder.png": figures.draw},
    tables=figures.tables,
    cost=lambda run: run.steps * len(run.seeds) * run.width**2 * run.blocks,
)


if __name__ == "__main__":
    command.main(EXPERIMENT)
