"""What Hugging Face calls our tensors: the one table of names, read in both directions."""

from typing import Literal

from megaswitch.model.config import STACKS, ModelConfig

Family = Literal["switch_transformers", "t5"]
"""`model_type` in config.json: models with experts, and dense ones."""

TABLES = ("shared.weight", *(f"{stack}.embed_tokens.weight" for stack in STACKS))
"""Names of the input table; a folder may hold it under any of them, or under several."""
HEAD = "lm_head.weight"
IGNORED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
"""What some old folders hold and no model uses."""


def family_of(config: ModelConfig) -> Family:
    """The family in which a model is exported."""
    return "switch_transformers" if config.num_experts else "t5"


def transposed(name: str) -> bool:
    """Whether a tensor of ours, stored [in, out], is theirs turned around ([out, in])."""
    return not (name == "embedding" or name.endswith((".relative_bias", "norm")))


def their_names(name: str, config: ModelConfig, family: Family) -> list[str]:
    """Their tensors that make up one of ours: one, or for experts one each, in order."""
    if name in ("embedding", "head"):
        return [TABLES[0] if name == "embedding" else HEAD]
    stack, rest = name.split(".", 1)
    if rest == "norm":
        return [f"{stack}.final_layer_norm.weight"]
    if rest == "relative_bias":
        return [f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    _, layer, sublayer, *leaf = rest.split(".")
    number = {"attention": 0, "cross_attention": 1}.get(sublayer, 1 if stack == "encoder" else 2)
    prefix = f"{stack}.block.{layer}.layer.{number}"
    if leaf == ["norm"]:
        return [f"{prefix}.layer_norm.weight"]
    if sublayer.endswith("attention"):
        module = "SelfAttention" if sublayer == "attention" else "EncDecAttention"
        return [f"{prefix}.{module}.{leaf[0]}.weight"]
    if leaf == ["router"]:
        return [f"{prefix}.mlp.router.classifier.weight"]
    if leaf[0] == "experts":
        return [f"{prefix}.mlp.experts.expert_{e}.{leaf[1]}.weight" for e in range(config.num_experts)]
    module = "mlp" if family == "switch_transformers" else "DenseReluDense"
    gated = {"wi_gate": "wi_0", "wi": "wi_1"} if config.activation == "geglu" else {}
    return [f"{prefix}.{module}.{gated.get(leaf[0], leaf[0])}.weight"]
