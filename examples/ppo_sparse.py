"""Sparse agents: PPO on a cart-pole, eight agents in one program, each with its own masks.

  python examples/ppo_sparse.py               # four methods, some minutes on two cores
  python examples/ppo_sparse.py --updates 2   # a smoke test
  python examples/ppo_sparse.py --plot curves.png

The environment, the agent and the training are JAX functions of one agent, and `jax.vmap`
makes eight of them. Dense, static random masks with ERK densities and SynFlow's masks are
one compiled program: the masks are part of the optimizer's state. RigL, which moves them,
is another. The one line of the agent that knows of masks is its optimizer.
"""

import argparse
import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import synflow_jax as sj

DENSITY, WIDTH = 0.1, 64
AGENTS, ENVIRONMENTS, STEPS = 8, 16, 128  # steps of each environment between updates
EPOCHS, BATCHES = 4, 4


# --- a cart-pole (Barto, Sutton and Anderson, 1983) ---------------------------------------


def reset(key):
    return jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05), jnp.int32(0)


def step_environment(key, environment, action):
    """One step of 0.02 seconds; after a fall, or 500 steps, the next episode starts."""
    (x, speed, angle, turn), time = environment
    push = jnp.where(action == 1, 10.0, -10.0)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    pull = (push + 0.05 * turn**2 * sine) / 1.1
    spin = (9.8 * sine - cosine * pull) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    acceleration = pull - 0.05 * spin * cosine / 1.1
    change = jnp.array([speed, acceleration, turn, spin])
    state, time = jnp.array([x, speed, angle, turn]) + 0.02 * change, time + 1
    fell = (jnp.abs(state[0]) > 2.4) | (jnp.abs(state[2]) > 12 * jnp.pi / 180)
    over = fell | (time >= 500)
    start, zero = reset(key)
    following = jnp.where(over, start, state), jnp.where(over, zero, time)
    return following, over, jnp.where(over, time, 0)


# --- the agent ----------------------------------------------------------------------------


def initial(key):
    """A policy and a value, each with two hidden layers."""

    def layers(key, outputs, scale):
        sizes = {"a": (4, WIDTH), "b": (WIDTH, WIDTH), "c": (WIDTH, outputs)}
        keys = jax.random.split(key, 3)
        draw = jax.nn.initializers.orthogonal
        return {
            name: {"kernel": draw(gain)(k, size), "bias": jnp.zeros(size[1])}
            for k, gain, (name, size) in zip(keys, (2**0.5, 2**0.5, scale), sizes.items())
        }

    one, other = jax.random.split(key)
    return {"policy": layers(one, 2, 0.01), "value": layers(other, 1, 1.0)}


def network(layers, x):
    for name in ("a", "b"):
        x = jnp.tanh(x @ layers[name]["kernel"] + layers[name]["bias"])
    return x @ layers["c"]["kernel"] + layers["c"]["bias"]


def agent(params, x):
    """Logits of the two actions, and the value of the state."""
    return network(params["policy"], x), network(params["value"], x)[..., 0]


class Batch(NamedTuple):
    """What a step of an environment leaves; after `advantages`, with targets."""

    state: jax.Array
    action: jax.Array
    log_p: jax.Array
    value: jax.Array
    over: jax.Array
    advantage: jax.Array
    target: jax.Array


def loss(params, batch):
    """The clipped objective (Schulman et al., 2017), of value and entropy too."""
    logits, value = agent(params, batch.state)
    log_p = jax.nn.log_softmax(logits)
    taken = jnp.take_along_axis(log_p, batch.action[:, None], 1)[:, 0]
    ratio = jnp.exp(taken - batch.log_p)
    gain = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
    policy = jnp.minimum(ratio * gain, jnp.clip(ratio, 0.8, 1.2) * gain).mean()
    entropy = -(jnp.exp(log_p) * log_p).sum(1).mean()
    return -policy + 0.5 * ((value - batch.target) ** 2).mean() - 0.01 * entropy


def played(params, environments, key):
    """STEPS steps of all environments, with advantages; the mean length of episodes."""

    def one(environments, key):
        choose, again = jax.random.split(key)
        logits, value = agent(params, environments[0])
        action = jax.random.categorical(choose, logits)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)[:, 0]
        keys = jax.random.split(again, ENVIRONMENTS)
        after, over, length = jax.vmap(step_environment)(keys, environments, action)
        zero = jnp.zeros_like(value)
        batch = Batch(environments[0], action, log_p, value, over, zero, zero)
        return after, (batch, length)

    keys = jax.random.split(key, STEPS)
    environments, (batch, length) = jax.lax.scan(one, environments, keys)

    def backwards(carry, step):
        advantage, following = carry
        goes_on = 1.0 - step.over
        error = 1.0 + 0.99 * following * goes_on - step.value
        advantage = error + 0.99 * 0.95 * goes_on * advantage
        return (advantage, step.value), advantage

    last = agent(params, environments[0])[1]
    first = jnp.zeros_like(last), last
    _, advantage = jax.lax.scan(backwards, first, batch, reverse=True)
    batch = batch._replace(advantage=advantage, target=advantage + batch.value)
    ended = jnp.maximum((length > 0).sum(), 1)
    return environments, batch, jnp.where(length.sum(), length.sum() / ended, STEPS)


@functools.partial(jax.jit, static_argnames=("optimizer", "updates"))
def trained(optimizer, params, states, keys, updates):
    """Trains a batch of agents; the mean length of episodes at each update.

    Args:
      optimizer: used for its ``update``; masks and keys are those of the states.
      params, states, keys: one for each agent.
      updates: number of times that all environments are played and learnt from.
    """

    def learn(carry, batch):
        params, state = carry
        steps, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, steps), state), None

    def update(carry, key):
        params, state, environments = carry
        play, *shuffles = jax.random.split(key, 1 + EPOCHS)
        environments, batch, length = played(params, environments, play)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        for shuffle in shuffles:
            order = jax.random.permutation(shuffle, STEPS * ENVIRONMENTS)
            parts = jax.tree.map(
                lambda x, order=order: x[order].reshape(BATCHES, -1, *x.shape[1:]), flat
            )
            (params, state), _ = jax.lax.scan(learn, (params, state), parts)
        return (params, state, environments), length

    def one(params, state, key):
        start, key = jax.random.split(key)
        environments = jax.vmap(reset)(jax.random.split(start, ENVIRONMENTS))
        carry, lengths = jax.lax.scan(
            update, (params, state, environments), jax.random.split(key, updates)
        )
        return carry[0], carry[1], lengths

    return jax.vmap(one)(params, states, keys)


# --- four methods -------------------------------------------------------------------------


METHODS = ("dense", "static, ERK", "static, SynFlow", "RigL, from ERK")


def masks_by(method, params, keys):
    """The masks of every agent before training."""
    if method == "dense":
        return jax.vmap(sj.all_kept)(params)
    if method == "static, SynFlow":
        # Each by itself: the policy's last layer starts a hundred times smaller than the
        # value's, so of the flow through both it would have next to nothing.
        score = sj.synflow(network, (4,))
        prune = jax.vmap(lambda layers: sj.prune(score, layers, DENSITY)[0])
        return {part: prune(params[part]) for part in params}

    def random(params, key):
        options = {"rounds": 1, "allocation": sj.erk}
        return sj.prune(sj.random(key), params, DENSITY, **options)[0]

    return jax.vmap(random)(params, keys)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=120)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--plot", metavar="FILE", help="draws the curves (matplotlib)")
    args = parser.parse_args(argv)
    inner = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-3))
    until = max(args.updates * EPOCHS * BATCHES * 3 // 4, 3)
    one = jax.eval_shape(initial, jax.random.key(0))
    keys = jax.random.split(jax.random.key(0), AGENTS)
    params = jax.vmap(initial)(keys)

    def static(masks):
        return sj.static_pruning(inner, masks)

    def moving(masks):
        every = min(20, until - 1)
        return sj.dynamic_sparsity(
            inner, masks, sj.grow_by_gradient(), every=every, until=until
        )

    # Their masks are not used: those of each agent are in its state.
    optimizers = {kind: kind(sj.all_kept(one)) for kind in (static, moving)}
    curves = {}
    for name in args.methods:
        masks = masks_by(name, params, keys)
        kind = moving if name.startswith("RigL") else static
        begun = time.perf_counter()
        states = jax.vmap(lambda p, m, kind=kind: kind(m).init(p))(params, masks)
        weights = jax.vmap(sj.apply_masks)(params, masks)
        weights, states, curves[name] = jax.block_until_ready(
            trained(optimizers[kind], weights, states, keys, args.updates)
        )
        pruned = jax.tree.map(lambda w, m: jnp.all((w == 0) | m), weights, states.masks)
        assert all(map(bool, jax.tree.leaves(pruned)))
        kept = sum(int(m.sum()) for m in jax.tree.leaves(states.masks)) // AGENTS
        last = curves[name][:, -max(args.updates // 10, 1) :].mean(1)
        print(
            f"{name:16} {kept:6} parameters an agent, episodes of {last.mean():5.1f} steps "
            f"({last.min():.1f} to {last.max():.1f}), {time.perf_counter() - begun:.0f} s"
        )
    if args.plot:
        draw(curves, args.plot)
    return curves


def draw(curves, path):
    """The mean of the agents, and from the worst to the best of them."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for name, lengths in curves.items():
        played = (1 + jnp.arange(lengths.shape[1])) * STEPS * ENVIRONMENTS / 1000
        (line,) = axes.plot(played, lengths.mean(0), label=name)
        axes.fill_between(
            played, lengths.min(0), lengths.max(0), alpha=0.15, color=line.get_color()
        )
    axes.set(xlabel="thousand steps played by an agent", ylabel="steps of an episode")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
