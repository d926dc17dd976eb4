"""Keras 3's applications on JAX, at their real sizes, for small images."""

import os

from benchmarks.models.cases import Case

REQUIREMENTS = ("keras>=3",)


def _case(name, size=64, **given):
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    make = getattr(keras.applications, name)
    model = make(weights=None, input_shape=(size, size, 3), classes=1000, **given)
    fixed = [v.value for v in model.non_trainable_variables]
    names = [v.path for v in model.trainable_variables]
    params = {v.path: v.value for v in model.trainable_variables}

    def apply_fn(params, x):
        weights = [params[name] for name in names]
        return model.stateless_call(weights, fixed, x, training=False)[0]

    return Case(apply_fn, params, (size, size, 3), _kernels)


def _kernels(name, leaf):
    """Also the two kernels of a separable convolution."""
    return name.endswith("kernel")


def mobilenet():
    return _case("MobileNetV2", classifier_activation=None)


def efficientnet():
    return _case("EfficientNetB0", classifier_activation=None)


MODELS = {
    "MobileNetV2": mobilenet,
    "EfficientNet-B0": efficientnet,
}
