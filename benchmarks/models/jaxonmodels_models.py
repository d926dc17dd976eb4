"""Models of jaxonmodels (Equinox), with torchvision's sizes."""

import jax

import synflow_jax as sj
from benchmarks.models.cases import Case, ids

REQUIREMENTS = ("jaxonmodels", "torch")  # which its image models import


def _image(model, state, size, **given):
    apply_fn, params = sj.from_equinox(model, state=state, **given)
    return Case(apply_fn, params, (3, size, size))


def swin():
    """Swin Transformer V2, two stages: cosine attention in shifted windows."""
    from jaxonmodels.models import swin_transformer as swin

    model, state = swin._swin_transformer(
        key=jax.random.key(0),
        inference=True,
        num_classes=10,
        patch_size=[4, 4],
        embed_dim=48,
        depths=[2, 2],
        num_heads=[3, 6],
        window_size=[4, 4],
        stochastic_depth_prob=0.0,
        block=swin.SwinTransformerBlockV2,
        downsample_layer=swin.PatchMergingV2,
        attn_layer=swin.ShiftedWindowAttentionV2,
    )
    return _image(model, state, 64, key=jax.random.key(0))


def mamba():
    """Mamba: a selective state space, by a scan; head and embedding are one leaf."""
    from jaxonmodels.models.mamba import Mamba

    model = Mamba(n_embd=64, n_dims=200, n_layers=2, key=jax.random.key(0))
    apply_fn, params = sj.from_equinox(model)
    return Case(apply_fn, params, ids(1, 24), high=200)


MODELS = {
    "Swin V2": swin,
    "Mamba": mamba,
}
