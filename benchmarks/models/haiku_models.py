"""Haiku's own networks, and graph networks of jraph, whose layers are Haiku's."""

import jax
import jax.numpy as jnp
import numpy as np

import synflow_jax as sj
from benchmarks.models.cases import Case

REQUIREMENTS = ("dm-haiku", "jraph")

WEIGHTS = sj.matching("*/w")


def _case(forward, shape):
    """``forward(x, is_training)``; parameters and batch statistics as Haiku makes them."""
    import haiku as hk

    net = hk.transform_with_state(forward)
    init = jax.jit(net.init, static_argnums=2)
    params, state = init(jax.random.key(0), jnp.ones((1, *shape)), True)

    def apply_fn(params, x):
        return net.apply(params, state, None, x, False)[0]

    return Case(apply_fn, params, shape, WEIGHTS)


def resnet():
    """ResNet-18, whose head starts at zero."""

    def forward(x, is_training):
        import haiku as hk

        return hk.nets.ResNet18(10)(x, is_training)

    return _case(forward, (64, 64, 3))


def mobilenet():
    """MobileNetV1 at its real size."""

    def forward(x, is_training):
        import haiku as hk

        return hk.nets.MobileNetV1(num_classes=1000)(x, is_training)

    return _case(forward, (64, 64, 3))


def vq_vae():
    """A quantising autoencoder: nearest vectors, straight through."""

    def forward(x, is_training):
        import haiku as hk

        x = jax.nn.relu(hk.Conv2D(64, 4, stride=2)(x))
        x = hk.Conv2D(32, 4, stride=2)(x)
        coded = hk.nets.VectorQuantizer(32, 64, commitment_cost=0.25)(x, is_training)
        x = jax.nn.relu(hk.Conv2DTranspose(64, 4, stride=2)(coded["quantize"]))
        return hk.Conv2DTranspose(3, 4, stride=2)(x)

    return _case(forward, (32, 32, 3))


def transformer():
    """Haiku's attention, in blocks as in its example of a language model."""

    def forward(tokens):
        import haiku as hk

        width, length = 64, tokens.shape[1]
        start = hk.initializers.VarianceScaling(0.5)
        mask = np.tril(np.ones((1, 1, length, length)))
        h = hk.Embed(200, width)(tokens)
        h = h + hk.get_parameter("positions", [length, width], init=start)
        for _ in range(2):
            norm = hk.LayerNorm(-1, True, True)(h)
            attention = hk.MultiHeadAttention(4, 16, model_size=width, w_init=start)
            h = h + attention(norm, norm, norm, mask=mask)
            norm = hk.LayerNorm(-1, True, True)(h)
            h = h + hk.Linear(width)(jax.nn.gelu(hk.Linear(4 * width)(norm)))
        return hk.Linear(200)(hk.LayerNorm(-1, True, True)(h))

    import haiku as hk

    net = hk.without_apply_rng(hk.transform(forward))
    tokens = jax.ShapeDtypeStruct((1, 12), jnp.int32)
    params = net.init(jax.random.key(0), jnp.ones(tokens.shape, jnp.int32))
    return Case(net.apply, params, tokens, WEIGHTS, high=200)


def lstm():
    """A deep LSTM, unrolled by a scan."""

    def forward(x, is_training):
        import haiku as hk

        core = hk.DeepRNN([hk.LSTM(64), hk.LSTM(64), hk.Linear(10)])
        return hk.dynamic_unroll(core, x, core.initial_state(len(x)), time_major=False)[0]

    return _case(forward, (20, 16))


NODES, EDGES = 30, 90


def _graph(network):
    """``network(graph)`` on nodes of 16 features; the edges are constants."""
    import haiku as hk
    import jraph

    rng = np.random.default_rng(0)
    nodes = np.arange(NODES)
    senders = np.concatenate([nodes, rng.integers(NODES, size=EDGES)])  # own edges first
    receivers = np.concatenate([nodes, rng.integers(NODES, size=EDGES)])

    def forward(x):
        graph = jraph.GraphsTuple(
            nodes=x,
            edges=jnp.ones((len(senders), 4)),
            senders=jnp.asarray(senders),
            receivers=jnp.asarray(receivers),
            globals=jnp.ones((1, 4)),
            n_node=jnp.array([NODES]),
            n_edge=jnp.array([len(senders)]),
        )
        return network(graph)

    net = hk.without_apply_rng(hk.transform(forward))
    x = jax.ShapeDtypeStruct((NODES, 16), jnp.float32)
    params = net.init(jax.random.key(0), jnp.ones(x.shape))
    return Case(net.apply, params, x, WEIGHTS)


def graph_convolutions():
    import haiku as hk
    import jraph

    def network(graph):
        for width in (64, 64):
            layer = jraph.GraphConvolution(lambda x, n=width: jax.nn.relu(hk.Linear(n)(x)))
            graph = layer(graph)
        return hk.Linear(7)(graph.nodes)

    return _graph(network)


def graph_attention():
    """GAT: a softmax over the edges of each node, by maxima and sums of segments."""
    import haiku as hk
    import jraph

    def attend(sent, received, edges):
        return jax.nn.leaky_relu(hk.Linear(1)(jnp.concatenate([sent, received], -1)))

    def network(graph):
        for width in (64, 64):
            query = lambda x, n=width: hk.Linear(n)(x)  # noqa: E731
            graph = jraph.GAT(query, attend)(graph)
        return hk.Linear(7)(graph.nodes)

    return _graph(network)


def graph_network():
    """A full graph network: edges, nodes and globals are updated."""
    import haiku as hk
    import jraph

    def mlp(*args):
        x = jnp.concatenate(args, -1)
        return hk.nets.MLP([64, 32])(x)

    def network(graph):
        for _ in range(2):
            graph = jraph.GraphNetwork(mlp, mlp, mlp)(graph)
        return hk.Linear(1)(graph.globals)

    return _graph(network)


MODELS = {
    "ResNet-18": resnet,
    "MobileNetV1": mobilenet,
    "VQ-VAE": vq_vae,
    "Transformer": transformer,
    "LSTM": lstm,
    "GCN": graph_convolutions,
    "GAT": graph_attention,
    "GraphNetwork": graph_network,
}
