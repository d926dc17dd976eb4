"""Transformers' last release with Flax, at small configurations of its own."""

import jax.numpy as jnp

from benchmarks.models.cases import Case, floats, ids

REQUIREMENTS = ("transformers<5",)

TEXT = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "vocab_size": 1000,
}
IMAGE = {"image_size": 64, "patch_size": 16} | {
    key: TEXT[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")
}


def _of(model, output, *names, constants=()):
    """``apply_fn`` of a model whose inputs have these names."""

    def apply_fn(params, x):
        inputs = dict(zip(names, x if len(names) > 1 else (x,)))
        return model(**inputs, **dict(constants), params=params)[output]

    return apply_fn


def _text(kind, config, length=16, **given):
    """A model of tokens, its mask all ones."""
    import transformers

    config = getattr(transformers, f"{config}Config")(**TEXT | given)
    model = getattr(transformers, f"Flax{kind}")(config, input_shape=(1, length))
    mask = {"attention_mask": jnp.ones((1, length), jnp.int32)}
    apply_fn = _of(model, 0, "input_ids", constants=mask)
    return Case(apply_fn, model.params, ids(1, length), high=1000)


def bert():
    return _text("BertForMaskedLM", "Bert")


def gpt2():
    # It names them its own way.
    sizes = {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return _text("GPT2LMHeadModel", "GPT2", **sizes)


def llama():
    return _text("LlamaForCausalLM", "Llama", max_position_embeddings=64)


def mistral():
    sizes = {"num_key_value_heads": 2, "max_position_embeddings": 64, "sliding_window": 8}
    return _text("MistralForCausalLM", "Mistral", **sizes)


def gemma():
    sizes = {"num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 64}
    return _text("GemmaForCausalLM", "Gemma", **sizes)


def big_bird():
    """Its sparse attention, in blocks: random blocks come from numpy while tracing."""
    sizes = {"block_size": 4, "num_random_blocks": 1, "max_position_embeddings": 128}
    return _text("BigBirdForMaskedLM", "BigBird", length=64, **sizes)


def _tokens(kind, config):
    """A model of images, read at all tokens: no flow comes out of the class token alone."""
    import transformers

    model = getattr(transformers, f"Flax{kind}")(config, input_shape=(1, 64, 64, 3))
    apply_fn = _of(model, "last_hidden_state", "pixel_values")
    return Case(apply_fn, model.params, (3, 64, 64))


def vit():
    import transformers

    return _tokens("ViTModel", transformers.ViTConfig(**IMAGE, intermediate_size=512))


def dinov2():
    import transformers

    return _tokens("Dinov2Model", transformers.Dinov2Config(**IMAGE))


def resnet():
    """ResNet-50 at its real size."""
    import transformers

    config = transformers.ResNetConfig(num_labels=1000)
    model = transformers.FlaxResNetForImageClassification(
        config, input_shape=(1, 64, 64, 3)
    )
    statistics = model.params["batch_stats"]

    def apply_fn(params, x):
        return model(x, params={"params": params, "batch_stats": statistics})[0]

    return Case(apply_fn, model.params["params"], (3, 64, 64))


def clip():
    """Both towers, read at all tokens."""
    import transformers

    config = transformers.CLIPConfig(
        text_config=TEXT, vision_config=IMAGE | {"intermediate_size": 512}
    )
    model = transformers.FlaxCLIPModel(config, input_shape=((1, 16), (1, 64, 64, 3)))
    mask = jnp.ones((1, 16), jnp.int32)

    def apply_fn(params, x):
        out = model(x[0], x[1], attention_mask=mask, params=params)
        towers = out.text_model_output, out.vision_model_output
        return [tower.last_hidden_state for tower in towers]

    return Case(apply_fn, model.params, (ids(1, 16), floats(1, 3, 64, 64)), high=1000)


def t5():
    """Encoder and decoder; it calls `jnp.clip` by a keyword that JAX no longer has."""
    import transformers

    clip = jnp.clip

    def older(x, a_min=None, a_max=None):
        return clip(x, a_min, a_max)

    transformers.models.t5.modeling_flax_t5.jnp.clip = older

    config = transformers.T5Config(
        vocab_size=1000, d_model=128, d_kv=32, d_ff=512, num_layers=2, num_heads=4
    )
    model = transformers.FlaxT5ForConditionalGeneration(config, input_shape=(1, 16))
    names = "input_ids", "decoder_input_ids"
    apply_fn = _of(model, "logits", *names)
    return Case(apply_fn, model.params, (ids(1, 16), ids(1, 8)), high=1000)


def whisper():
    import transformers

    layers = {f"{part}_layers": 2 for part in ("encoder", "decoder")}
    heads = {f"{part}_attention_heads": 4 for part in ("encoder", "decoder")}
    ffn = {f"{part}_ffn_dim": 512 for part in ("encoder", "decoder")}
    config = transformers.WhisperConfig(
        vocab_size=1000,
        d_model=128,
        max_source_positions=50,
        max_target_positions=32,
        num_mel_bins=40,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        **layers,
        **heads,
        **ffn,
    )
    model = transformers.FlaxWhisperForConditionalGeneration(
        config, input_shape=(1, 40, 100)
    )
    apply_fn = _of(model, "logits", "input_features", "decoder_input_ids")
    inputs = (floats(1, 40, 100), ids(1, 8))
    return Case(apply_fn, model.params, inputs, high=1000)


MODELS = {
    "BERT": bert,
    "GPT-2": gpt2,
    "LLaMA": llama,
    "Mistral": mistral,
    "Gemma": gemma,
    "BigBird": big_bird,
    "ViT": vit,
    "DINOv2": dinov2,
    "ResNet-50": resnet,
    "CLIP": clip,
    "T5": t5,
    "Whisper": whisper,
}
