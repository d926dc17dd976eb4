"""SynFlow in plain PyTorch, as one would write it: what `benchmarks` compares with.

Sizes of the masked weights, one backward pass from an all-ones input, `kthvalue` over all
scores, new masks; the networks, in evaluation mode, have the weights of
`synflow_jax.models`. Needs the extra ``bench``, and imports nothing of JAX.

    python -m benchmarks.pytorch_baseline mlp weights.npz masks.pt    # a whole process

The weights are a leaf each, by their names, and ``counts``, one for each round.
"""

import sys

import numpy as np
import torch
from torch.nn import functional


def prune(name, params, counts):
    """Prunes a network of `NETWORKS`, one round for each whole number to keep.

    Args:
      name: a key of `NETWORKS`.
      params: its parameters as `synflow_jax.models.build` makes them.
      counts: kernels' weights to keep after each round.

    Returns:
      ``run()``, which prunes from the start and returns a boolean tensor for each kernel,
      in PyTorch's layout, by the name of its layer.
    """
    layers = layers_of(params)
    kernels = [layer for layer in layers if layers[layer]["kernel"] is not None]
    weights = {layer: layers[layer]["kernel"] for layer in kernels}
    total = sum(weight.numel() for weight in weights.values())
    network, shape = NETWORKS[name]
    image = torch.ones(1, shape[2], *shape[:2])

    def run():
        masks = {layer: torch.ones_like(weights[layer]) for layer in kernels}
        for count in counts:
            sizes = {layer: (weights[layer] * masks[layer]).abs_() for layer in kernels}
            found = _scores(network, layers, sizes, image)
            if count < total:
                flat = torch.cat([score.flatten() for score in found.values()])
                threshold = torch.kthvalue(flat, total - int(count)).values
                masks = {layer: (s > threshold).float() for layer, s in found.items()}
        return {layer: mask > 0 for layer, mask in masks.items()}

    return run


def scores(network, layers, image):
    """``run()``: the score of every kernel, of a network that is not masked."""
    kernels = {name: parts["kernel"] for name, parts in layers.items()}

    def run():
        sizes = {name: w.abs() for name, w in kernels.items() if w is not None}
        return _scores(network, layers, sizes, image)

    return run


def _scores(network, layers, sizes, image):
    """The size of each weight times its gradient, the sizes being those of the kernels."""
    used = dict(layers)
    for name, size in sizes.items():
        used[name] = {**layers[name], "kernel": size.requires_grad_()}
    network(used, image).sum().backward()
    return {name: (size.detach() * size.grad).abs_() for name, size in sizes.items()}


def layers_of(params):
    """The tensors of each layer of a network's parameters, by the layer's name."""
    return {layer: _tensors(parts) for layer, parts in _flattened(params)}


def in_torch_layout(kernel):
    """A kernel of Flax, input and output channels last, with them first and swapped."""
    return np.moveaxis(np.asarray(kernel), (-1, -2), (0, 1))


def _flattened(params, above=()):
    """Every layer's name and arrays; a layer is what holds no further dict."""
    if not any(isinstance(value, dict) for value in params.values()):
        yield "/".join(above), params
        return
    for name, value in params.items():
        yield from _flattened(value, (*above, name))


def _tensors(parts):
    tensors = {"kernel": None}
    for name, value in parts.items():
        array = in_torch_layout(value) if name == "kernel" else np.asarray(value)
        tensors[name] = torch.from_numpy(np.array(array, order="C"))
        if name == "bias":  # the flow has no shifts
            tensors[name].zero_()
    return tensors


def _conv(layers, name, x, stride=1):
    layer = layers[name]
    padding = layer["kernel"].shape[-1] // 2
    return functional.conv2d(x, layer["kernel"], layer.get("bias"), stride, padding)


def _norm(layers, name, x):
    scale = layers[name]["scale"]
    mean, variance = torch.zeros_like(scale), torch.ones_like(scale)
    return functional.batch_norm(x, mean, variance, scale.abs(), layers[name]["bias"])


def _dense(layers, name, x):
    return functional.linear(x, layers[name]["kernel"], layers[name]["bias"])


def _rows(x):
    """One row an image, in the order in which Flax flattens it."""
    return x.permute(0, 2, 3, 1).flatten(1)


def _mlp(layers, x):
    x = _rows(x)
    for layer in layers:
        x = _dense(layers, layer, x)
        x = functional.relu(x) if layer != list(layers)[-1] else x
    return x


def _vgg(repeats, dense, norm):
    def network(layers, x):
        number = 0
        for group, times in enumerate(repeats):
            for _ in range(times):
                number += 1
                x = _conv(layers, f"conv{number:02d}", x)
                x = functional.relu(_norm(layers, f"bn{number:02d}", x) if norm else x)
            average = len(dense) == 1 and group == 4
            x = functional.avg_pool2d(x, 2) if average else functional.max_pool2d(x, 2)
        x = _rows(x)
        for layer in dense[:-1]:
            x = functional.relu(_dense(layers, layer, x))
        return _dense(layers, dense[-1], x)

    return network


def _resnet(repeats):
    def network(layers, x):
        x = functional.relu(_norm(layers, "bn", _conv(layers, "conv", x)))
        for group, times in enumerate(repeats, 1):
            for number in range(1, times + 1):
                block = f"group{group}_block{number}/"
                stride = 2 if group > 1 and number == 1 else 1
                y = _norm(layers, block + "bn1", _conv(layers, block + "conv1", x, stride))
                y = _conv(layers, block + "conv2", functional.relu(y))
                y = _norm(layers, block + "bn2", y)
                if block + "shortcut" in layers:
                    x = _conv(layers, block + "shortcut", x, stride)
                    x = _norm(layers, block + "shortcut_bn", x)
                x = functional.relu(x + y)
        return _dense(layers, "linear", x.mean((2, 3)))

    return network


def unet(layers, x):
    """The network of `benchmarks.resolution.unet`, of images and of volumes."""
    space = x.ndim - 2
    convolved, transposed, pooled = (
        getattr(functional, f"{name}{space}d")
        for name in ("conv", "conv_transpose", "max_pool")
    )

    def both(name, x):
        for number in range(2):
            x = functional.relu(convolved(x, kernel(f"{name}/{number}"), padding="same"))
        return x

    def kernel(name):
        return layers[name]["kernel"]

    levels, skips = sum(name.startswith("up") for name in layers), []
    for level in range(levels):
        skips.append(both(f"down/{level}", x))
        x = pooled(skips[-1], 2)
    x = both(f"down/{levels}", x)
    for level in reversed(range(levels)):
        # PyTorch's transposed convolution has the kernel's axes swapped, and mirrors it.
        up = kernel(f"up/{level}").swapaxes(0, 1).flip(list(range(2, 2 + space)))
        x = transposed(x, up, stride=2)
        x = both(f"join/{level}", torch.cat([x, skips[level]], 1))
    return convolved(x, kernel("head"))


_CIFAR = (32, 32, 3)
NETWORKS = {
    "mlp": (_mlp, (28, 28, 1)),
    "vgg16_cifar": (_vgg((2, 2, 3, 3, 3), ["linear"], norm=True), _CIFAR),
    "vgg19_imagenet": (
        _vgg((2, 2, 4, 4, 4), ["linear1", "linear2", "linear3"], norm=False),
        (224, 224, 3),
    ),
    "resnet20": (_resnet((3, 3, 3)), _CIFAR),
    "resnet18": (_resnet((2, 2, 2, 2)), _CIFAR),
}


def main(name, weights, masks):
    """Reads weights, prunes and saves the masks."""
    arrays = dict(np.load(weights))
    counts, params = arrays.pop("counts"), {}
    for path, array in arrays.items():
        *layers, leaf = path.split("/")
        inner = params
        for layer in layers:
            inner = inner.setdefault(layer, {})
        inner[leaf] = array
    torch.save(prune(name, params, counts.tolist())(), masks)


if __name__ == "__main__":
    main(*sys.argv[1:])
