"""The golden checkpoints as data: one `Fixture` per directory."""

from dataclasses import dataclass, field
from typing import Any

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)


@dataclass
class Fixture:
    """One checkpoint: what to build, how to store it, and which config values must change the output."""

    name: str
    covers: str
    config: PreTrainedConfig
    dtype: str = "bfloat16"
    prompt_len: int = 130
    shard_size: str | None = None
    fused_experts: bool = False  # transformers 5's in-memory form, experts stacked in one tensor
    old: dict[str, Any] | None = None  # rewrite config.json to the older keys, with these added
    drop: tuple[str, ...] = ()  # keys left out of config.json
    weights: str | None = None  # a rewrite of the stored weights, see make_golden.REWRITES
    eos: list[int] | None = None  # generation_config.json's list
    tokenizer: str | None = None  # a tokenizer whose template is in `tokenizer_config.json` or `chat_template.jinja`
    stop_at: int | None = None  # put the first new greedy token from this step on into that list
    fp8: dict[str, Any] | None = None  # config.json's quantization_config: linear layers are stored in e4m3 with scales
    scale_dtype: str = "float32"  # the type of those scales
    matters: dict[str, dict[str, Any]] = field(default_factory=dict)  # config changes that must be seen


SMALL = dict(
    vocab_size=112,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    bos_token_id=1,
    eos_token_id=2,
)


def small(config_class: type, **changes: Any) -> PreTrainedConfig:
    """A tiny config of a class: `SMALL` with changes."""
    return config_class(**(SMALL | changes))


WIDE = dict(hidden_size=64, intermediate_size=24)  # head_dim 8 where it is hidden_size / heads


def rope(theta: float = 10000.0, kind: str = "default", **more: Any) -> dict[str, Any]:
    """A `rope_parameters` value."""
    return dict(rope_type=kind, rope_theta=theta, **more)


TEXT = dict(vocab_size=277, bos_token_id=272, eos_token_id=273)  # golden_tokenizer's ids
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128)
TWO_ROPES = {"full_attention": rope(1e6), "sliding_attention": rope(1e4)}
FAR_ROPES = {"full_attention": rope(1e6, "linear", factor=8.0), "sliding_attention": rope(1e4)}
NO_ROPE_SCALING = {"scaling": dict(rope_parameters=rope(50000.0))}
NO_WINDOW = {"window": dict(sliding_window=4095)}
ONE_MORE = lambda window: {"window off by one": dict(sliding_window=window + 1)}  # noqa: E731
FULL = lambda layers: {"layer types": dict(layer_types=["full_attention"] * layers)}  # noqa: E731


FIXTURES = [
    Fixture(
        "llama",
        "Llama 2, config of transformers 5, GQA 8/4, untied, real tokenizer with a chat template",
        small(LlamaConfig, **TEXT, num_key_value_heads=4, head_dim=8, rms_norm_eps=1e-5,
              rope_parameters=rope()),
        dtype="float32",
        tokenizer="tokenizer_config.json",
        prompt_len=120,
        eos=[273, 276],
        matters={"theta": dict(rope_parameters=rope(500000.0)), "eps": dict(rms_norm_eps=1e-2)},
    ),
    Fixture(
        "llama1",
        "Llama 1 as on hubs: no rope_theta, num_key_value_heads, head_dim, generation_config; inv_freq stored; 6 heads",
        small(LlamaConfig, hidden_size=48, num_attention_heads=6, num_key_value_heads=6, intermediate_size=24,
              max_position_embeddings=2048),
        dtype="float16",
        prompt_len=101,
        old=dict(pad_token_id=0),
        drop=("head_dim", "num_key_value_heads", "rope_theta", "rope_scaling", "attention_bias", "mlp_bias",
              "attention_dropout", "pretraining_tp"),
        weights="add_inv_freq",
    ),
    Fixture(
        "llama31",
        "Llama 3.1+, rope_parameters llama3, tied, eos list in both files, vocabulary 131",
        small(LlamaConfig, vocab_size=131, head_dim=16, tie_word_embeddings=True, eos_token_id=[2, 5, 6],
              rope_parameters=rope(50000.0, "llama3", **LLAMA3)),
        prompt_len=150,
        eos=[2, 5, 6],
        matters=NO_ROPE_SCALING,
    ),
    Fixture(
        "llama31_old_config",
        "the same with rope_theta + rope_scaling, no head_dim, untied, sharded",
        small(LlamaConfig, **WIDE, eos_token_id=[2, 5, 6],
              rope_parameters=rope(50000.0, "llama3", **LLAMA3)),
        shard_size="40KB",
        prompt_len=150,
        old=dict(),
        drop=("head_dim",),
        eos=[2, 5, 6],
        matters=NO_ROPE_SCALING,
    ),
    Fixture(
        "llama_linear",
        "rope_scaling of type `linear` spelled `type`; prompt of 1100 tokens",
        small(LlamaConfig, hidden_size=48, num_attention_heads=6, intermediate_size=24,
              rope_parameters=rope(10000.0, "linear", factor=4.0)),
        prompt_len=1100,
        old=dict(),
        drop=("head_dim",),
        matters={"scaling": dict(rope_parameters=rope())},
    ),
    Fixture(
        "llama_bias",
        "attention_bias and mlp_bias, head_dim unlike hidden / heads, 3 KV heads of 6, linear rope in rope_parameters",
        small(LlamaConfig, hidden_size=30, num_attention_heads=6, num_key_value_heads=3, head_dim=12,
              intermediate_size=38, attention_bias=True, mlp_bias=True,
              rope_parameters=rope(10000.0, "linear", factor=2.5)),
        prompt_len=110,
        matters={"scaling": dict(rope_parameters=rope())},
    ),
    Fixture(
        "llama_tied_bf16_sharded",
        "tied, four shards with an index, the tied lm_head stored too, intermediate_size 136",
        small(LlamaConfig, intermediate_size=136, tie_word_embeddings=True, rope_parameters=rope()),
        shard_size="24KB",
        prompt_len=128,
        weights="add_tied_head",
    ),
    Fixture(
        "llama_eos",
        "generation stops at the second entry of generation_config.json's eos list (config.json has one id)",
        small(LlamaConfig, num_hidden_layers=1, num_key_value_heads=8, rope_parameters=rope()),
        dtype="float16",
        prompt_len=64,
        eos=[2],
        stop_at=10,
    ),
    Fixture(
        "mistral",
        "sliding window of 16 on all layers, head_dim 12",
        small(MistralConfig, head_dim=12, sliding_window=16, rope_parameters=rope()),
        matters=NO_WINDOW | ONE_MORE(16),
    ),
    Fixture(
        "mistral_old_config",
        "Mistral 7B v0.1 as on hubs: sliding window of 8, no head_dim, 6 heads on 3",
        small(MistralConfig, hidden_size=48, num_attention_heads=6, num_key_value_heads=3, intermediate_size=24,
              sliding_window=8, rms_norm_eps=1e-5, rope_parameters=rope()),
        dtype="float16",
        old=dict(),
        drop=("head_dim",),
        matters=NO_WINDOW | ONE_MORE(8),
    ),
    Fixture(
        "qwen2",
        "Qwen2 as on hubs: qkv bias, tied, sliding_window given but use_sliding_window false",
        small(Qwen2Config, **WIDE, tie_word_embeddings=True, bos_token_id=3, rope_parameters=rope(1e6)),
        old=dict(use_sliding_window=False, sliding_window=24, max_window_layers=1),
        drop=("layer_types",),
        eos=[2, 3],
        matters={"window": dict(sliding_window=24, layer_types=["full_attention", "sliding_attention"])},
    ),
    Fixture(
        "qwen2_sliding",
        "use_sliding_window, layer_types full + sliding, untied",
        small(Qwen2Config, **WIDE, use_sliding_window=True, sliding_window=16, max_window_layers=1,
              rope_parameters=rope(1e6)),
        matters=NO_WINDOW | FULL(2) | ONE_MORE(16),
    ),
    Fixture(
        "qwen2_sliding_old_config",
        "the same rule without layer_types: max_window_layers 2 of 3; 6 heads",
        small(Qwen2Config, hidden_size=48, num_hidden_layers=3, num_attention_heads=6,
              intermediate_size=24, use_sliding_window=True, sliding_window=12, max_window_layers=2,
              rope_parameters=rope(1e6)),
        dtype="float16",
        old=dict(),
        drop=("layer_types",),
        matters=NO_WINDOW | FULL(3) | ONE_MORE(12),
    ),
    Fixture(
        "qwen3",
        "q/k norms, head_dim 12, tied, the tokenizer with its template in chat_template.jinja",
        small(Qwen3Config, **TEXT, head_dim=12, tie_word_embeddings=True, rope_parameters=rope(1e6)),
        tokenizer="chat_template.jinja",
        eos=[273, 276],
    ),
    Fixture(
        "qwen3_old_config",
        "older keys, untied, f32, sharded, 6 heads on 2 KV heads",
        small(Qwen3Config, num_attention_heads=6, head_dim=8, intermediate_size=24, rope_parameters=rope(1e6)),
        dtype="float32",
        shard_size="50KB",
        old=dict(),
        drop=("layer_types",),
    ),
    Fixture(
        "gemma2",
        "soft caps, four norms, windows of 16 on alternate layers, GeGLU, embedding scale, query_pre_attn_scalar 24",
        small(Gemma2Config, num_hidden_layers=3, head_dim=8, sliding_window=16,
              query_pre_attn_scalar=24, attn_logit_softcapping=1.5, final_logit_softcapping=4.0,
              rope_parameters=rope()),
        matters=NO_WINDOW | FULL(3) | ONE_MORE(16) | {
            "scale": dict(query_pre_attn_scalar=8),
            "attention cap": dict(attn_logit_softcapping=None),
            "final cap": dict(final_logit_softcapping=None),
        },
    ),
    Fixture(
        "gemma2_old_config",
        "Gemma 2 as on hubs: no layer_types, no tie_word_embeddings, hidden_act beside hidden_activation; sharded",
        small(Gemma2Config, intermediate_size=72, head_dim=8, num_key_value_heads=4, sliding_window=8,
              query_pre_attn_scalar=8, attn_logit_softcapping=2.0, final_logit_softcapping=5.0,
              rope_parameters=rope()),
        shard_size="40KB",
        old=dict(hidden_act="gelu_pytorch_tanh", cache_implementation="hybrid"),
        drop=("layer_types", "tie_word_embeddings", "use_bidirectional_attention", "rope_scaling"),
        matters=NO_WINDOW | FULL(2) | ONE_MORE(8) | {"attention cap": dict(attn_logit_softcapping=None)},
    ),
    Fixture(
        "gemma3",
        "layer_types, rope_parameters per layer type (linear x 8 on full layers), q/k norms, windows of 16",
        small(Gemma3TextConfig, num_hidden_layers=3, head_dim=12, sliding_window=16,
              query_pre_attn_scalar=20, rope_parameters=FAR_ROPES,
              layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
        eos=[2, 7],
        matters=NO_WINDOW | FULL(3) | ONE_MORE(16) | {
            "scale": dict(query_pre_attn_scalar=12),
            "scaling": dict(rope_parameters=TWO_ROPES),
            "one rope": dict(rope_parameters=TWO_ROPES | {"sliding_attention": rope(1e6)}),
        },
    ),
    Fixture(
        "gemma3_old_config",
        "Gemma 3 as on hubs: sliding_window_pattern 3, rope_local_base_freq, rope_theta, tied without the key",
        small(Gemma3TextConfig, num_hidden_layers=4, head_dim=8, num_key_value_heads=1,
              sliding_window=8, query_pre_attn_scalar=8, sliding_window_pattern=3, rope_parameters=TWO_ROPES,
              final_logit_softcapping=6.0),
        old=dict(sliding_window_pattern=3, cache_implementation="hybrid"),
        drop=("layer_types", "tie_word_embeddings", "use_bidirectional_attention", "_sliding_window_pattern"),
        eos=[2, 7],
        matters=NO_WINDOW | FULL(4) | ONE_MORE(8) | {
            "final cap": dict(final_logit_softcapping=None),
            "one rope": dict(rope_parameters=TWO_ROPES | {"full_attention": rope(1e4)}),
        },
    ),
    Fixture(
        "phi3",
        "fused qkv_proj and gate_up_proj, sliding window of 40, no KV grouping, head_dim 6",
        small(Phi3Config, hidden_size=48, intermediate_size=72, num_key_value_heads=8, sliding_window=40,
              pad_token_id=0, rope_parameters=rope()),
        prompt_len=140,
        matters=NO_WINDOW | ONE_MORE(40),
    ),
    Fixture(
        "phi3_partial",
        "older keys, partial_rotary_factor 0.75 of head_dim 8, GQA 6/2, tied (as Phi-4-mini)",
        small(Phi3Config, vocab_size=150, hidden_size=48, num_attention_heads=6, intermediate_size=24,
              tie_word_embeddings=True, pad_token_id=0, rope_parameters=rope(partial_rotary_factor=0.75)),
        old=dict(),
        eos=[2, 9],
        matters={"partial": dict(rope_parameters=rope(partial_rotary_factor=1.0))},
    ),
    Fixture(
        "mixtral",
        "8 experts, 2 per token, hub names (block_sparse_moe.experts.E.w1), config of transformers 5",
        small(MixtralConfig, head_dim=8, intermediate_size=16, rope_parameters=rope(1e6)),
        matters={"top k": dict(num_experts_per_tok=1)},
    ),
    Fixture(
        "mixtral_old_config",
        "older keys, sharded, 5 experts of 12, 3 per token, sliding window of 24, 6 heads",
        small(MixtralConfig, hidden_size=48, num_attention_heads=6, intermediate_size=12, num_local_experts=5,
              num_experts_per_tok=3, sliding_window=24, rope_parameters=rope(1e6)),
        shard_size="50KB",
        old=dict(),
        drop=("head_dim",),
        matters=NO_WINDOW | ONE_MORE(24) | {"top k": dict(num_experts_per_tok=2)},
    ),
    Fixture(
        "mixtral_fused",
        "transformers 5's other form: mlp.experts.gate_up_proj [E, 2I, H] and down_proj [E, H, I], mlp.gate",
        small(MixtralConfig, head_dim=8, num_hidden_layers=1, num_local_experts=5, intermediate_size=40,
              rope_parameters=rope(1e6)),
        fused_experts=True,
    ),
    Fixture(
        "qwen3_moe",
        "7 experts (num_experts, as on hubs), 3 per token, norm_topk_prob true, all layers sparse, older keys",
        small(Qwen3MoeConfig, head_dim=8, num_experts=7, num_experts_per_tok=3, moe_intermediate_size=16,
              norm_topk_prob=True, rope_parameters=rope(1e6)),
        old=dict(max_window_layers=2),
        eos=[2, 8],
        matters={"norm": dict(norm_topk_prob=False)},
    ),
    Fixture(
        "qwen3_moe_mixed",
        "norm_topk_prob false, decoder_sparse_step 2 and mlp_only_layers [3]: layer 1 of 4 is sparse; tied, sharded",
        small(Qwen3MoeConfig, num_hidden_layers=4, head_dim=8, intermediate_size=24, num_experts=6,
              num_experts_per_tok=4, moe_intermediate_size=24, norm_topk_prob=False, decoder_sparse_step=2,
              mlp_only_layers=[3], tie_word_embeddings=True, rope_parameters=rope(1e6)),
        shard_size="40KB",
        matters={"norm": dict(norm_topk_prob=True)},
    ),
    Fixture(
        "qwen3_moe_fused",
        "transformers 5's other form of the experts, no head_dim, sliding window of 16 on every layer, 6 heads",
        small(Qwen3MoeConfig, hidden_size=48, num_attention_heads=6, num_hidden_layers=1, num_experts=8,
              num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True, use_sliding_window=True,
              sliding_window=16, rope_parameters=rope(1e6)),
        fused_experts=True,
        matters=NO_WINDOW | ONE_MORE(16),
    ),
    Fixture(
        "llama_fp8",
        "FP8 as DeepSeek has it: weight_scale_inv per 24 x 64, which divides neither sizes nor cuts; 6 heads of 16",
        small(LlamaConfig, hidden_size=48, num_attention_heads=6, head_dim=16, intermediate_size=136,
              rope_parameters=rope()),
        fp8=dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[24, 64]),
    ),
    Fixture(
        "qwen2_fp8",
        "FP8 with one scale per tensor (weight_scale, a scalar) and an input_scale, which is ignored; biases, tied",
        small(Qwen2Config, **WIDE, tie_word_embeddings=True, rope_parameters=rope(1e6)),
        fp8=dict(quant_method="fp8", activation_scheme="static", modules_to_not_convert=["lm_head"]),
    ),
    Fixture(
        "phi3_fp8",
        "compressed-tensors: float-quantized per channel, scales in bfloat16, fused qkv_proj, one down_proj ignored",
        small(Phi3Config, hidden_size=48, intermediate_size=72, num_key_value_heads=8, sliding_window=40,
              pad_token_id=0, rope_parameters=rope()),
        prompt_len=140,
        fp8=dict(quant_method="compressed-tensors", format="float-quantized", quantization_status="compressed",
                 ignore=["lm_head", "re:model[.]layers[.]1[.].*down_proj$"], kv_cache_scheme=None, config_groups=dict(
                     group_0=dict(targets=["Linear"], output_activations=None,
                                  input_activations=dict(num_bits=8, type="float", strategy="token", dynamic=True),
                                  weights=dict(num_bits=8, type="float", strategy="channel", symmetric=True,
                                               dynamic=False)))),
        scale_dtype="bfloat16",
    ),
    Fixture(
        "qwen3_moe_fp8",
        "Qwen3 MoE as FP8: each expert's weight_scale_inv, in bfloat16, per 32 x 32; heads of 12, which scales cut",
        small(Qwen3MoeConfig, hidden_size=48, head_dim=12, num_experts=7, num_experts_per_tok=3,
              moe_intermediate_size=40, norm_topk_prob=True, rope_parameters=rope(1e6)),
        old=dict(max_window_layers=2),
        fp8=dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[32, 32],
                 modules_to_not_convert=["lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]),
        scale_dtype="bfloat16",
    ),
    Fixture(
        "opt",
        "learned positions with offset 2, LayerNorm with bias, ReLU, biases everywhere, tied, head_dim 6",
        OPTConfig(vocab_size=112, hidden_size=48, ffn_dim=40, num_hidden_layers=2, num_attention_heads=8,
                  max_position_embeddings=160),
    ),
    Fixture(
        "opt_old_config",
        "OPT as on hubs: torch_dtype, names without the `model.` prefix, f16, vocabulary 131, 6 heads",
        OPTConfig(vocab_size=131, hidden_size=48, ffn_dim=36, num_hidden_layers=2, num_attention_heads=6,
                  max_position_embeddings=160),
        dtype="float16",
        old=dict(prefix="</s>"),
        drop=("tie_word_embeddings", "enable_bias", "layer_norm_elementwise_affine"),
        weights="strip_model",
    ),
    Fixture(
        "opt_post_norm",
        "OPT 350M: do_layer_norm_before false (no final norm), word_embed_proj_dim 16 with project_in and project_out",
        OPTConfig(vocab_size=128, hidden_size=48, ffn_dim=56, num_hidden_layers=1, num_attention_heads=8,
                  max_position_embeddings=160, word_embed_proj_dim=16, do_layer_norm_before=False),
        old=dict(),
    ),
]
