"""Our configuration as config.json, and what of it the other side cannot express."""

from dataclasses import fields
from typing import Any

from megaswitch.checkpoint.hugging_face.names import family_of
from megaswitch.checkpoint.hugging_face.recognise import NO_LIMIT
from megaswitch.layers.relative_bias import NUM_BUCKETS
from megaswitch.model.config import STACKS, ModelConfig, Stack
from megaswitch.ops.reference.rms_norm import EPSILON
from megaswitch.utils.errors import UserError
from megaswitch.utils.problem import Problem

_EXPRESSED = {
    *("vocab_size", "d_model", "d_ff", "d_kv", "num_heads", "num_encoder_layers", "num_decoder_layers"),
    *("num_experts", "num_sparse_encoder_layers", "num_sparse_decoder_layers", "activation", "tied_embeddings"),
    *("dropout", "jitter", "aux_loss_coef", "router_z_loss_coef", "capacity_factor", "eval_capacity_factor"),
    *("min_capacity", "capacity_rounding", "fixed_capacity", "group_sequences", "decoder_group_sequences"),
    "route_padding",
}
"""Fields that config.json has a place for, or that are looked at below."""
_OF_TRAINING = {
    *("preset", "encoder_length", "decoder_length", "expert_dropout", "aux_loss_reduction", "z_loss", "init_scale"),
    *("init_rule", "router_init_std", "exploration", "router_dropout"),
}
"""Fields that change no pass of the finished model."""
_OF_OTHER_ROUTERS = {"router_choices", "second_policy", "second_threshold", "second_place_loss"}
"""Fields that the Switch router does not read."""


def check_expressible(model: ModelConfig, slots: int | None) -> tuple[str, ...]:
    """Raise one UserError with all reasons why a model cannot be exported; return what is worth telling.

    `slots` is the number of slots an expert is to have for a row, where the user gives one.
    """
    problems = [*_unknown(model), *_activation(model), *_placement(model), *_capacity(model, slots)]
    if problems:
        told = "\n".join(f"  - {p}" for p in problems)
        raise UserError(f"transformers cannot express this model:\n{told}")
    return _notes(model, slots)


def _unknown(model: ModelConfig) -> list[Problem]:
    """Whatever is neither expressed nor without effect must stand at its default."""
    harmless = _EXPRESSED | _OF_TRAINING | _OF_OTHER_ROUTERS
    remedy = "only the top-1 router of Switch Transformer in float32 over feed-forward experts is there"
    return [
        Problem(f"model.{f.name}", f"{getattr(model, f.name)!r} has no counterpart in transformers", remedy)
        for f in fields(model)
        if f.name not in harmless and getattr(model, f.name) != f.default
    ]


def _activation(model: ModelConfig) -> list[Problem]:
    if model.num_experts == 0 or model.activation == "relu":
        return []
    remedy = "its Switch models have relu experts only; a dense model with geglu can be exported"
    return [Problem("model.activation", f"{model.activation} experts do not exist there", remedy)]


def _placement(model: ModelConfig) -> list[Problem]:
    if model.num_experts == 0:
        return []
    return [
        Problem(
            f"model.num_sparse_{stack}_layers",
            f"the {stack}'s sparse layers {_sparse(model, stack)} of {model.num_layers(stack)} cannot be placed",
            "there layer i is sparse where i % step == 1 or step is 1: all layers, or every second from 1 on",
        )
        for stack in STACKS
        if _their_count(model, stack) is None
    ]


def _sparse(model: ModelConfig, stack: Stack) -> list[int]:
    return [i for i in range(model.num_layers(stack)) if model.is_sparse(stack, i)]


def _their_count(model: ModelConfig, stack: Stack) -> int | None:
    """The num_sparse_*_layers by which their rule gives our sparse layers; None when none does.

    Their step is layers // count (layers for a count of 0); layer i is sparse where step is 1, or i % step == 1.
    A count above the number of layers makes the step 0: no layer is sparse.
    """
    layers, ours = model.num_layers(stack), _sparse(model, stack)
    candidates: list[int] = [len(ours), *range(layers + 2)]
    for count in candidates:
        step = _step(layers, count)
        if [i for i in range(layers) if step == 1 or (step > 1 and i % step == 1)] == ours:
            return count
    return None


def _step(layers: int, count: int) -> int:
    return layers // count if count else layers


def _capacity(model: ModelConfig, slots: int | None) -> list[Problem]:
    """There an expert has one fixed number of slots for a row, in both stacks, and padding takes slots."""
    if model.num_experts == 0 or slots is not None:
        return []
    if _own_slots(model) is None:
        return [
            Problem(
                "model.eval_capacity_factor",
                f"slots by a factor of {model.eval_capacity_factor:g} over groups of sequences do not exist there, but "
                "a fixed number for each sequence",
                "choose it with --expert-capacity=N, or drop nothing with --expert-capacity=all",
            )
        ]
    if _own_slots(model) == NO_LIMIT:
        return []
    size = {model.group_size(stack) for stack in STACKS}
    remedy = "choose slots for a sequence with --expert-capacity=N, or drop nothing with --expert-capacity=all"
    problems = []
    if size != {1}:
        problems.append(Problem("model.group_sequences", "groups of several sequences do not exist there", remedy))
    if not model.route_padding:
        problems.append(Problem("model.route_padding", "there padding is always routed and takes slots", remedy))
    return problems


def _own_slots(model: ModelConfig) -> int | None:
    """Slots for a row in evaluation; NO_LIMIT when nothing is ever dropped, None when it depends on lengths."""
    if model.fixed_capacity is not None:
        return model.fixed_capacity
    factor = model.eval_capacity_factor
    return NO_LIMIT if factor is None or factor >= model.num_experts else None


def _notes(model: ModelConfig, slots: int | None) -> tuple[str, ...]:
    notes = []
    if model.num_experts and slots is not None and slots != _own_slots(model):
        notes.append("expert_capacity is not the model's own rule: where it drops tokens, logits will differ")
    if model.num_experts and model.expert_dropout not in (None, model.dropout):
        notes.append("expert_dropout has no counterpart; dropout_rate is the other layers'")
    return tuple(notes)


def their_config(model: ModelConfig, slots: int | None, dtype: str) -> dict[str, Any]:
    """config.json of an expressible model whose tensors are of `dtype`."""
    common = {
        "d_ff": model.d_ff,
        "d_kv": model.d_kv,
        "d_model": model.d_model,
        "decoder_start_token_id": 0,
        "dropout_rate": model.dropout,
        "dtype": dtype,
        "eos_token_id": 1,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": EPSILON,
        "num_decoder_layers": model.num_decoder_layers,
        "num_heads": model.num_heads,
        "num_layers": model.num_encoder_layers,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": NUM_BUCKETS,
        "tie_word_embeddings": model.tied_embeddings,
        "use_cache": True,
        "vocab_size": model.vocab_size,
    }
    special = _dense(model) if family_of(model) == "t5" else _sparse_keys(model, slots)
    return dict(sorted({**common, **special}.items()))


def _dense(model: ModelConfig) -> dict[str, Any]:
    gated = model.activation == "geglu"
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "dense_act_fn": "gelu_new" if gated else "relu",
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "is_gated_act": gated,
        "model_type": "t5",
        "scale_decoder_outputs": model.tied_embeddings,
    }


def _sparse_keys(model: ModelConfig, slots: int | None) -> dict[str, Any]:
    counts = {stack: _their_count(model, stack) or 0 for stack in STACKS}
    return {
        "architectures": ["SwitchTransformersForConditionalGeneration"],
        "add_router_probs": False,
        "decoder_sparse_step": _step(model.num_decoder_layers, counts["decoder"]),
        "dense_act_fn": "relu",
        "encoder_sparse_step": _step(model.num_encoder_layers, counts["encoder"]),
        "expert_capacity": slots if slots is not None else _own_slots(model),
        "model_type": "switch_transformers",
        "num_experts": model.num_experts,
        "num_sparse_decoder_layers": counts["decoder"],
        "num_sparse_encoder_layers": counts["encoder"],
        "router_aux_loss_coef": model.aux_loss_coef,
        "router_bias": False,
        "router_dtype": "float32",
        "router_ignore_padding_tokens": False,
        "router_jitter_noise": model.jitter,
        "router_z_loss_coef": model.router_z_loss_coef,
    }
