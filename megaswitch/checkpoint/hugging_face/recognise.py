"""Which model a Hugging Face folder holds: sizes by its tensors, and by config.json what tensors cannot say.

Where both speak the tensors are right: how many layers, experts and heads there are, which layers are sparse,
whether the output matrix is the input table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from megaswitch.checkpoint.hugging_face.folder import CONFIG, Folder
from megaswitch.checkpoint.hugging_face.names import HEAD, TABLES, Family
from megaswitch.layers.relative_bias import NUM_BUCKETS
from megaswitch.model.config import STACKS, ModelConfig, Stack
from megaswitch.ops.reference.rms_norm import EPSILON
from megaswitch.utils.errors import DataError

NO_LIMIT = 0x7FFFFFFF
"""`expert_capacity` of a model that drops nothing."""
_ARCHITECTURES: Mapping[Family, tuple[str, ...]] = {
    "switch_transformers": ("SwitchTransformersForConditionalGeneration",),
    "t5": ("T5ForConditionalGeneration", "T5WithLMHeadModel"),
}
_MUST: Mapping[str, tuple[Any, ...]] = {
    "layer_norm_epsilon": (EPSILON,),
    "relative_attention_num_buckets": (NUM_BUCKETS,),
    "relative_attention_max_distance": (128,),
    "is_encoder_decoder": (True,),
    "pad_token_id": (0,),
    "eos_token_id": (1, [1]),
    "decoder_start_token_id": (0, None),
    "router_bias": (False,),
    "router_dtype": ("float32",),
}
"""Values that this implementation has built in; each is also the other side's default."""


@dataclass(frozen=True)
class Recognised:
    """A model, the family whose names its tensors have, the name of its table, and what is worth telling."""

    model: ModelConfig
    family: Family
    table: str
    notes: tuple[str, ...]


def recognise(folder: Folder) -> Recognised:
    """The model in a folder. DataError when it is one that cannot be expressed here, with what is in the way."""
    family = _family(folder)
    table = _one_table(folder)
    _check_built_in(folder, family)
    model = _sizes(folder, table)
    model = replace(model, activation=_activation(folder, family))
    model = _with_sparse_layers(folder, model)
    model = replace(model, **_options(folder, model))
    _check_scale(folder, family, model)
    return Recognised(model, family, table, _disagreements(folder, model))


def _family(folder: Folder) -> Family:
    told = folder.config.get("model_type")
    family: Family | None = next((family for family in _ARCHITECTURES if family == told), None)
    if family is None:
        raise DataError(f"{folder.path / CONFIG}: model_type is {told!r}; {' and '.join(_ARCHITECTURES)} can be read")
    classes = folder.config.get("architectures") or [_ARCHITECTURES[family][0]]
    if not isinstance(classes, list) or any(name not in _ARCHITECTURES[family] for name in classes):
        raise DataError(
            f"{folder.path / CONFIG}: architectures is {classes}; only {_ARCHITECTURES[family][0]} has all weights of "
            "an encoder and a decoder with an output matrix"
        )
    return family


def _one_table(folder: Folder) -> str:
    """The input table's name; several copies are fine as long as they are equal."""
    held = [name for name in TABLES if name in folder.shapes]
    if not held and HEAD in folder.shapes:
        held = [HEAD]  # tied, and saved under the last of its names
    if not held:
        raise DataError(f"{folder.path}: there is no input table ({TABLES[0]})")
    for name in held[1:]:
        if not _equal(folder, held[0], name):
            raise DataError(
                f"{folder.path}: {held[0]} and {name} differ; here encoder and decoder share one input table"
            )
    return held[0]


def _equal(folder: Folder, one: str, other: str) -> bool:
    """Whether two tensors are alike, looked at block by block."""
    if folder.shapes[one] != folder.shapes[other] or len(folder.shapes[one]) != 2:
        return False
    a, b = folder.read(one), folder.read(other)
    rows = max(1, (1 << 22) // max(1, a.shape[1]))
    return all(torch.equal(a[i : i + rows], b[i : i + rows]) for i in range(0, a.shape[0], rows))


def _check_built_in(folder: Folder, family: Family) -> None:
    wrong = [
        f"{key} is {folder.config[key]!r} (must be {allowed[0]!r})"
        for key, allowed in _MUST.items()
        if key in folder.config and folder.config[key] not in allowed
    ]
    if wrong:
        raise DataError(f"{folder.path / CONFIG}: {'; '.join(wrong)}: such a model cannot be expressed here")


def _shape(folder: Folder, name: str, dims: int) -> tuple[int, ...]:
    shape = folder.shapes.get(name)
    if shape is None or len(shape) != dims or 0 in shape:
        found = "missing" if shape is None else f"of shape {list(shape)}"
        raise DataError(f"{folder.path}: {name} is {found}; the folder holds no whole model of its kind")
    return shape


def _layers(folder: Folder, stack: Stack) -> int:
    prefix = f"{stack}.block."
    numbers = {name.removeprefix(prefix).partition(".")[0] for name in folder.shapes if name.startswith(prefix)}
    if not numbers or numbers != {str(i) for i in range(len(numbers))}:
        raise DataError(f"{folder.path}: the layers of the {stack} are not 0, 1, 2 and so on: some are missing")
    return len(numbers)


def _feed_forward(stack: Stack, layer: int) -> str:
    return f"{stack}.block.{layer}.layer.{1 if stack == 'encoder' else 2}."


def _sizes(folder: Folder, table: str) -> ModelConfig:
    first = "encoder.block.0.layer.0.SelfAttention."
    vocabulary, width = _shape(folder, table, 2)
    heads = _shape(folder, f"{first}relative_attention_bias.weight", 2)[1]
    inner = _shape(folder, f"{first}q.weight", 2)[0]
    into = ("mlp.wi", "mlp.experts.expert_0.wi", "DenseReluDense.wi", "DenseReluDense.wi_1")
    names = [f"{_feed_forward('encoder', 0)}{leaf}.weight" for leaf in into]
    hidden = _shape(folder, next((n for n in names if n in folder.shapes), names[0]), 2)[0]
    return ModelConfig(
        vocab_size=vocabulary,
        d_model=width,
        d_ff=hidden,
        d_kv=inner // heads,
        num_heads=heads,
        num_encoder_layers=_layers(folder, "encoder"),
        num_decoder_layers=_layers(folder, "decoder"),
        tied_embeddings=HEAD not in folder.shapes or table == HEAD or _equal(folder, table, HEAD),
    )


def _activation(folder: Folder, family: Family) -> Any:
    """ "relu" or "geglu". Whether there is a gate the tensors say; which function, config.json alone."""
    gated = f"{_feed_forward('encoder', 0)}DenseReluDense.wi_0.weight" in folder.shapes
    key = "dense_act_fn" if family == "switch_transformers" else "feed_forward_proj"
    told = folder.config.get(key, "relu")
    function = folder.config.get("dense_act_fn", "gelu_new" if gated else "relu")
    if (told, function) != (("gated-gelu", "gelu_new") if gated else ("relu", "relu")):
        raise DataError(
            f"{folder.path / CONFIG}: {key} is {told!r} with dense_act_fn {function!r} over feed-forward networks "
            f"{'with' if gated else 'without'} a gate; relu without one and, in T5, gated-gelu (gelu_new) with one "
            "can be expressed here"
        )
    return "geglu" if gated else "relu"


def _with_sparse_layers(folder: Folder, model: ModelConfig) -> ModelConfig:
    """Number of experts, and the number of sparse layers that puts them where the tensors have them."""
    experts: set[int] = set()
    for stack in STACKS:
        routers = {i: f"{_feed_forward(stack, i)}mlp.router.classifier.weight" for i in range(model.num_layers(stack))}
        sparse = {i: name for i, name in routers.items() if name in folder.shapes}
        experts |= {_shape(folder, name, 2)[0] for name in sparse.values()}
        model = replace(model, num_experts=max(experts, default=0))
        model = _placed(folder, model, stack, set(sparse))
    if len(experts) > 1:
        raise DataError(f"{folder.path}: layers differ in their number of experts ({sorted(experts)})")
    return model


def _placed(folder: Folder, model: ModelConfig, stack: Stack, sparse: set[int]) -> ModelConfig:
    layers = model.num_layers(stack)
    for count in range(layers + 1):
        key = f"num_sparse_{stack}_layers"
        trial = replace(model, **{key: count})  # type: ignore[arg-type]
        if {i for i in range(layers) if trial.is_sparse(stack, i)} == sparse:
            return trial
    raise DataError(
        f"{folder.path}: the sparse layers of the {stack} are {sorted(sparse)} of {layers}; here they are the last of "
        "each run of equally many layers (all of them, or 1, 3, 5 and so on, or 3, 7, 11), which cannot express that"
    )


def _options(folder: Folder, model: ModelConfig) -> dict[str, Any]:
    """What config.json alone can say. Losses and their coefficients are of the training, and stay the recipe's: the
    other side's coefficient is for a loss defined otherwise."""
    dropout = _number(folder, "dropout_rate", 0.1)
    if model.num_experts == 0:
        return {"dropout": dropout}
    slots = folder.config.get("expert_capacity", 64)
    if type(slots) is not int or slots < 1:
        raise DataError(f"{folder.path / CONFIG}: expert_capacity is {slots!r}, which is no number of slots")
    # A row of the batch is a group, in training as in evaluation, and padding takes slots whatever
    # router_ignore_padding_tokens says: nothing over there reads it.
    routing = {"jitter": _number(folder, "router_jitter_noise", 0.01), "route_padding": True}
    limits = {"capacity_factor": None, "eval_capacity_factor": None} if slots >= NO_LIMIT else {"fixed_capacity": slots}
    return {"dropout": dropout, **routing, **limits}


def _number(folder: Folder, key: str, default: float) -> float:
    value = folder.config.get(key, default)
    if not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise DataError(f"{folder.path / CONFIG}: {key} is {value!r}; a number from 0 to 1 is expected")
    return float(value)


def _check_scale(folder: Folder, family: Family, model: ModelConfig) -> None:
    """T5's config.json may say that the logits of an own output matrix are scaled too, or those of the table not."""
    told = folder.config.get("scale_decoder_outputs")
    if family == "t5" and told is not None and told != model.tied_embeddings:
        kind = "is the input table" if model.tied_embeddings else "is one of its own"
        raise DataError(
            f"{folder.path / CONFIG}: scale_decoder_outputs is {told} but the output matrix {kind}; here exactly the "
            "logits of a tied table are scaled"
        )


def _disagreements(folder: Folder, model: ModelConfig) -> tuple[str, ...]:
    """Where config.json says otherwise than the tensors."""
    found = {
        "vocab_size": model.vocab_size,
        "d_model": model.d_model,
        "d_ff": model.d_ff,
        "d_kv": model.d_kv,
        "num_heads": model.num_heads,
        "num_layers": model.num_encoder_layers,
        "num_decoder_layers": model.num_decoder_layers,
    }
    if model.num_experts:
        found |= {
            "num_experts": model.num_experts,
            "tie_word_embeddings": model.tied_embeddings,
            "num_sparse_encoder_layers": model.num_sparse_encoder_layers,
            "num_sparse_decoder_layers": model.num_sparse_decoder_layers,
        }
    told = {key: folder.config.get(key) for key in found}
    return tuple(
        f"{CONFIG} says {key} = {told[key]}, the tensors say {value}; the tensors are right"
        for key, value in found.items()
        if told[key] is not None and told[key] != value
    )
