"""A small model of any configuration class of transformers, by the names of its fields.

A configuration class of transformers is a dataclass. A field that makes a model large is known by its name, and gets
one small value for all architectures (`RULES`); what has to fit together otherwise is in `overrides.py`. Parts of a
configuration (text, vision, audio) are shrunk likewise.
"""

import re
from dataclasses import MISSING, fields
from typing import Any

from overrides import SETTINGS
from transformers import PretrainedConfig

VOCAB, WIDTH, HEADS, HEAD, INNER, LAYERS = 64, 16, 2, 8, 32, 2
POSITIONS, IMAGE, PATCH, MELS = 64, 32, 8, 16
# Ids below are special ones, those from here on are text.
FIRST_TOKEN = 24

# Fields that look like sizes and are none.
LEFT = ("num_channels", "type_vocab_size", "input_channels", "stem_num_channels")
# Fields that follow from others where they are None, unless a part of a configuration brings its own.
FOLLOWING = {"num_key_value_heads": HEADS, "head_dim": HEAD}
_IDS = ("token_id", "token_index", "token_ids", "_idx")

Value = int | list | tuple


def _stages(value: int) -> Any:
    """One number for every stage, or for the one there is."""
    return lambda default: type(default)(value for _ in default) if isinstance(default, list | tuple) else value


def _growing(default: Value) -> Value:
    if isinstance(default, int):
        return WIDTH
    return type(default)(WIDTH * (2 if i else 1) for i in range(len(default)))


def _at_most(value: int) -> Any:
    return lambda default: min(default, value) if isinstance(default, int) else default


# By the first that matches the name of the field.
RULES: list[tuple[str, Any]] = [
    (r"vocab_size|n_vocab|vocab_size_\w+|\w+_vocab_size|num_embeddings|entity_vocab_size", lambda _: VOCAB),
    (r"max_\w*positions?\w*|n_positions|n_ctx|seq_length|max_sequence_length|max_seq\w*", _at_most(POSITIONS)),
    (r"\w*experts_per_tok(en)?|num_selected_experts|moe_k|moe_topk|top_?k|moe_top_k|num_experts_top_k", _at_most(2)),
    (r"num_shared_experts|n_shared_experts|moe_num_shared_experts|first_k_dense_replace|num_dense_layers|moe_layer_start\w*",
     _at_most(1)),
    (r"\w*num_experts|num_local_experts|n_routed_experts|num_routed_experts|moe_num_experts|num_moe_experts",
     _at_most(4)),
    (r"n_group|topk_group|num_expert_group\w*", _at_most(1)),
    # As many as query heads where they were, otherwise one for all of them.
    (r"(num_|n_)?(\w+_)?(kv|key_value)_heads|kv_n_heads", lambda default: 1),
    (r"depths|num_blocks|encoder_depths|layers_per_stage|num_layers_per_stage", _stages(1)),
    (r"\w*(num_hidden_layers|n_layers?|num_layers|encoder_layers|decoder_layers|num_\w+_layers|_layers|_depth)|depth",
     _at_most(LAYERS)),
    (r"\w*head_dim\w*|d_kv|attention_head_size|\w+_head_size|head_size|attention_dim_head|\w*_head_width",
     _stages(HEAD)),
    (r"\w*(attention_heads|num_heads|n_heads?|n_head|_heads)", _stages(HEADS)),
    (r"\w*lora_rank|\w*_rank", _at_most(HEAD)),
    (r"\w*intermediate_size|\w*ffn_dim|d_ff|d_inner|\w*hidden_dim|n_inner|dff|dim_ff|ffn_hidden_size|\w*mlp_dim"
     r"|intermediate_dim|feed_forward_size|inner_dim|ffn_size|hidden_features|class_expand", _stages(INNER)),
    (r"hidden_sizes|embed_dims|encoder_hidden|dims|neck_hidden_sizes|hidden_channels|stem_\w*channels", _growing),
    (r"\w*(hidden_size|d_model|d_latents|_dim|embd|embedding_size|width|d_embed|embed_size)|dim", _stages(WIDTH)),
    (r"image_size|input_size|img_size", _stages(IMAGE)),
    (r"patch_size|tubelet_size", _at_most(PATCH)),
    (r"num_patches", _at_most(16)),
    (r"num_mel_bins|n_mels|num_mel\w*|feature_size", _at_most(MELS)),
    (r"conv_dim|conv_channels|\w*_out_channels|output_channels|tdnn_dim|classifier_proj_size", _stages(WIDTH)),
    (r"sliding_window|context_size|local_attention|attention_window|window_size|block_size|chunk_size|attention_chunk_size",
     lambda default: default if not isinstance(default, int) else min(default, 4)),
]  # fmt: skip


def small_settings(config_class: type[PretrainedConfig]) -> dict[str, Any]:
    """Arguments of a configuration class that make a small model of it, parts included."""
    settings: dict[str, Any] = {}
    for field in fields(config_class):  # type: ignore[arg-type]
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if default is None and field.name in FOLLOWING:
            settings[field.name] = FOLLOWING[field.name]
        if field.name in LEFT or default is MISSING or default is None or isinstance(default, bool):
            continue
        if field.name.endswith(_IDS):
            if isinstance(default, int) and default >= FIRST_TOKEN:
                settings[field.name] = 4 + sum(name.endswith(_IDS) for name in settings)
        elif _is_size(default):
            rule = next((rule for pattern, rule in RULES if re.fullmatch(pattern, field.name)), None)
            if rule is not None:
                settings[field.name] = rule(default)
        if field.name == "num_key_value_heads" and default == getattr(config_class, "num_attention_heads", None):
            settings[field.name] = HEADS
    default_config = _default(config_class)
    settings |= _layer_kinds(default_config, {field.name for field in fields(config_class)})  # type: ignore[arg-type]
    for name in config_class.sub_configs:
        if isinstance(part := getattr(default_config, name, None), PretrainedConfig):
            settings[name] = {**small_settings(type(part)), "model_type": part.model_type}
    return merged(settings, SETTINGS.get(config_class.model_type, {}))


def merged(settings: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Settings with others put over them, part by part."""
    result = dict(settings)
    for name, value in others.items():
        inner = result.get(name)
        result[name] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def _is_size(value: Any) -> bool:
    return isinstance(value, int) or (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(v, int) for v in value)
    )


def _default(config_class: type[PretrainedConfig]) -> PretrainedConfig | None:
    """The configuration without arguments; None where there has to be one."""
    try:
        return config_class()
    except (ValueError, TypeError):
        return None


def _layer_kinds(config: PretrainedConfig | None, names: set[str]) -> dict[str, Any]:
    """One layer of each kind that a model has: sliding and full attention, dense and sparse."""
    lists = {name: getattr(config, name, None) for name in ("layer_types", "layers_block_type", "mlp_layer_types")}
    kinds = {name: list(dict.fromkeys(value)) for name, value in lists.items() if value and name in names}
    count = max([LAYERS, *map(len, kinds.values())])
    layers: dict[str, Any] = {name: [*kind, *kind[-1:] * (count - len(kind))] for name, kind in kinds.items()}
    return layers | ({"num_hidden_layers": count} if kinds and "num_hidden_layers" in names else {})
