"""Vision models of equimo (Equinox)."""

import jax

import synflow_jax as sj
from benchmarks.models.cases import Case

REQUIREMENTS = ("equimo",)


def _case(model):
    apply_fn, params = sj.from_equinox(model, key=jax.random.PRNGKey(0))
    return Case(apply_fn, params, (3, 64, 64))


def convnext():
    """ConvNeXt, whose blocks are scaled by 1e-6 when they start."""
    from equimo.models import ConvNeXt

    return _case(
        ConvNeXt(depths=[1, 1, 2, 1], dims=[32, 64, 128, 256], key=jax.random.PRNGKey(0))
    )


def mlla():
    """Mamba-like linear attention, which release 1.1 computes and does not use."""
    from equimo.models import Mlla

    return _case(
        Mlla(
            64,
            3,
            dim=32,
            depths=[1, 1, 1, 1],
            num_heads=[1, 2, 4, 8],
            key=jax.random.PRNGKey(0),
        )
    )


def vssd():
    """State-space duality without causal order (Mamba-2), with attention last."""
    from equimo.models import Vssd

    return _case(
        Vssd(
            64,
            3,
            dim=32,
            d_state=16,
            depths=[1, 1, 1, 1],
            num_heads=[2, 2, 4, 8],
            key=jax.random.PRNGKey(0),
        )
    )


def vit_of_dinov3():
    """ViT with registers, rotary positions and SwiGLU, as in DINOv3."""
    from equimo.models import VisionTransformer

    return _case(
        VisionTransformer(
            64,
            3,
            dim=128,
            patch_size=16,
            num_heads=4,
            depths=[2],
            use_global_pos_embed=False,
            use_local_pos_embed=True,
            ffn_layer="swiglu",
            key=jax.random.PRNGKey(0),
        )
    )


MODELS = {
    "ConvNeXt": convnext,
    "MLLA": mlla,
    "VSSD": vssd,
    "ViT, as DINOv3": vit_of_dinov3,
}
