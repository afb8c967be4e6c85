"""Tiny models of any architecture that transformers has, from its configuration class alone."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

TOKENS = 64

# What a setting of this name is at most.
SIZES = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "text_vocab_size"), TOKENS),
    **dict.fromkeys(("input_vocab_size", "output_vocab_size"), TOKENS),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim", "embedding_size"), 16
    ),
    **dict.fromkeys(("projection_dim", "output_dim", "image_size"), 16),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "n_inner", "hidden_dim"), 24),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 24),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"), 2),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "type_vocab_size"), 2),
    "num_experts_per_tok": 2,
    **dict.fromkeys(("head_dim", "d_kv", "moe_intermediate_size"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 32),
    **dict.fromkeys(("max_source_positions", "max_target_positions"), 32),
    **dict.fromkeys(("patch_size", "num_experts", "num_local_experts", "n_routed_experts"), 4),
}

_SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
_CONVOLUTIONS = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
_SERIES = {"prediction_length": 2, "context_length": 4, "lags_sequence": [1, 2]}
_SWIN = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 2}

# What the parts of these configurations must agree in.
SETTINGS: dict[str, dict[str, Any]] = {
    "autoformer": _SERIES,
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "bit": {"num_groups": 4, "embedding_size": 16, "hidden_sizes": (16, 16), "depths": (1, 1)},
    "data2vec-audio": {**_CONVOLUTIONS, "num_conv_pos_embeddings": 2},
    "donut-swin": _SWIN,
    "esm": {"vocab_size": TOKENS, "pad_token_id": 1},
    "falcon": {"num_attention_heads": 2, "head_dim": None},
    "funnel": {"block_sizes": (1, 1), "num_hidden_layers": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 4, "n_head": 4, "num_attention_heads": 4},
    "granite_speech5_ctc": {"context_size": 16},
    "granite_speech5_encoder": {"context_size": 16},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 8},
    "hiera": {"decoder_hidden_size": 16, "decoder_num_heads": 2, "decoder_depth": 1},
    "hubert": _CONVOLUTIONS,
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "informer": _SERIES,
    "mamba2": {"num_heads": 4, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "maskformer-swin": _SWIN,
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "prophetnet": {"num_hidden_layers": None, "num_encoder_layers": 1, "num_decoder_layers": 1},
    "qwen2_vl_text": {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
    "reformer": {
        "axial_pos_embds_dim": (8, 8),
        "axial_pos_shape": (4, 8),
        "attn_layers": ["local", "lsh"],
        "num_hidden_layers": None,
    },
    "sew": {**_CONVOLUTIONS, "conv_dim": (8,) * 13},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 16, 16, 16]},
    "zamba": {"num_hidden_layers": 2, "layers_block_type": ["mamba", "hybrid"]},
    "swin2sr": _SWIN,
    "swinv2": _SWIN,
    "time_series_transformer": _SERIES,
    "unispeech": _CONVOLUTIONS,
    "unispeech-sat": _CONVOLUTIONS,
    "wav2vec2": _CONVOLUTIONS,
    "wav2vec2-bert": {"vocab_size": TOKENS},
    "wav2vec2-conformer": {**_CONVOLUTIONS, "vocab_size": TOKENS},
    "wavlm": _CONVOLUTIONS,
}


def tiny_config(kind: type[PretrainedConfig], **settings: Any) -> PretrainedConfig:
    """A configuration of this class whose sizes are those of SIZES, parts included."""
    usual = kind()
    chosen: dict[str, Any] = {}
    for name, largest in SIZES.items():
        value = _get(usual, name)
        if type(value) is int and value > largest:
            chosen[name] = largest
    for name in kind.sub_configs or {}:
        part = getattr(usual, name, None)
        if isinstance(part, PretrainedConfig):
            chosen[name] = tiny_config(type(part), **SETTINGS.get(part.model_type, {})).to_dict()
    for name in _SPECIAL_TOKENS:
        value = getattr(usual, name, None)
        if type(value) is int and value >= TOKENS:
            chosen[name] = 1
    chosen |= {**SETTINGS.get(kind.model_type, {}), **settings}
    return kind(**{name: value for name, value in chosen.items() if value is not None})


def _get(config: PretrainedConfig, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except RuntimeError:  # it differs from layer to layer
        return None


def base_class(model_type: str) -> type[PreTrainedModel]:
    """The class that AutoModel takes for this type."""
    name = modeling_auto.MODEL_MAPPING_NAMES[model_type]
    return getattr(transformers, name if isinstance(name, str) else name[0])


def head_classes(model_type: str) -> list[type[PreTrainedModel]]:
    """The classes with a head that auto classes take for this type, and for its configuration."""
    base = base_class(model_type)
    names: dict[str, None] = {}
    for mapping_name, mapping in vars(modeling_auto).items():
        if mapping_name.startswith("MODEL_FOR_") and mapping_name.endswith("_NAMES"):
            name = mapping.get(model_type)
            names.update(dict.fromkeys([name] if isinstance(name, str) else name or ()))
    classes = [getattr(transformers, name, None) for name in names]
    return [each for each in classes if each not in (None, base) and each.config_class is base.config_class]


def built(kind: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """A model in eval mode in which no two parameters are alike, as they are where norms are all ones."""
    model = kind(copy.deepcopy(config)).eval()  # whose configuration saves change
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.tie_weights()
    return model


def config_of(model_type: str) -> PretrainedConfig:
    """The tiny configuration of an architecture."""
    return tiny_config(CONFIG_MAPPING[model_type])


def inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """What the model can be called with: its main input, and tokens for a decoder."""
    config, generator = model.config, torch.Generator().manual_seed(7)
    tokens = torch.randint(3, TOKENS - 4, (1, 8), generator=generator)
    shapes = {
        "pixel_values": (1, getattr(config, "num_channels", 3), *_image_size(config)),
        "input_values": (1, 4000),
        "input_features": (
            1,
            getattr(config, "num_mel_bins", 80),
            2 * getattr(config, "max_source_positions", 50),
        ),
    }
    main = model.main_input_name
    given = tokens if main == "input_ids" else torch.randn(shapes[main], generator=generator).to(model.dtype)
    decoder = {"decoder_input_ids": tokens} if config.is_encoder_decoder else {}
    return {main: given, **decoder}


def _image_size(config: PretrainedConfig) -> tuple[int, int]:
    size = getattr(config, "image_size", 16)
    return (size, size) if isinstance(size, int) else tuple(size)


@torch.no_grad()
def outputs(model: PreTrainedModel) -> list[Tensor]:
    """The tensors that the model makes of `inputs`."""
    torch.manual_seed(0)
    return [value for value in model(**inputs(model)).values() if isinstance(value, Tensor)]
