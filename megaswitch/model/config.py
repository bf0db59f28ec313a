"""What a model is: one frozen dataclass, and what follows from it by arithmetic alone (no torch here)."""

from dataclasses import dataclass
from typing import Literal

Stack = Literal["encoder", "decoder"]
Recompute = Literal["none", "selective", "full"]
STACKS: tuple[Stack, Stack] = ("encoder", "decoder")


@dataclass(frozen=True)
class ModelConfig:
    """A Switch Transformer or dense T5.

    Args:
        preset: name of a preset whose values the other fields override; empty for none.
        vocab_size: logical number of token ids (pieces, sentinels and the published padding).
        d_model: width of the residual stream.
        d_ff: hidden width of every feed-forward network and expert.
        d_kv: width of one attention head; heads x d_kv need not equal d_model.
        num_heads: attention heads.
        num_encoder_layers: encoder blocks.
        num_decoder_layers: decoder blocks.
        num_experts: experts of each sparse layer; 0 for a dense T5.
        num_sparse_encoder_layers: encoder blocks whose feed-forward network is a Switch layer.
        num_sparse_decoder_layers: likewise in the decoder.
        activation: "relu" (T5 v1.0, Switch Base, Large and C) or "geglu" (T5 v1.1, XXL).
        tied_embeddings: whether the output matrix is the input embedding (then scaled by d_model^-0.5).
        encoder_length: tokens of one encoder sequence.
        decoder_length: tokens of one decoder sequence.
        dropout: rate at embeddings, sublayer outputs, hidden units and attention weights.
        expert_dropout: rate on the hidden units of experts; null means `dropout`.
        capacity_factor: share of slots over tokens of a routing group in training; null drops nothing.
        eval_capacity_factor: the same in evaluation.
        min_capacity: least number of slots an expert has for a group.
        capacity_rounding: "round" (T5X) or "floor" (Mesh TensorFlow).
        group_sequences: consecutive encoder sequences that form one routing group.
        decoder_group_sequences: the same in the decoder; null means `group_sequences`.
        jitter: the router's input is multiplied by a uniform number from 1-jitter to 1+jitter in training.
        route_padding: whether padding tokens are routed (and take slots).
        aux_loss_coef: weight of the load-balancing loss, summed over layers (paper 2.2: 1e-2).
        router_z_loss_coef: weight of the router z-loss (ST-MoE: 1e-3; 0 in Switch).
        z_loss: weight of the squared log-partition of the output softmax (T5: 1e-4).
        init_scale: s of std = sqrt(s / fan_in) (paper 2.4: 0.1).
        init_rule: "released" (the configurations of the released checkpoints) or "paper" (section 2.4 as Mesh
            TensorFlow has it); see layers/initial.py.
        router_init_std: standard deviation of the router's initial weights.
        router_dtype: "float32" (selective precision), "compute": products in the compute type with a float32
            softmax, or "narrow": everything in the compute type (the paper's comparison).
            and loss. In bfloat16 that rounds logits and their gradients, and takes a fraction of the time.
        router: "switch" (top-1), "top2", "noisy_topk" (Shazeer 2017) or "ntlb" (No-Token-Left-Behind, appendix B).
        router_choices: experts of a token under "noisy_topk", and choices tried in turn under "ntlb".
        router_priority: who gets slots first: "position" in the group, or "probability" (batch-prioritised).
        exploration: "argmax", or "sample" from the softmax in training (appendix C); with "switch" only.
        router_dropout: dropout rate on the router's copy of its input in training (appendix C).
        second_policy: when "top2" uses its second expert: "all", "none", "threshold" or "random".
        second_threshold: normalised gate above which the second expert is used, or surely used under "random".
        second_place_loss: whether "top2" balances second choices too, with half the weight.
        aux_loss_reduction: auxiliary losses are a "sum" over Switch layers (paper) or their "mean" (T5X).
        expert_attention: whether sparse blocks also project their self-attention by experts (appendix A).
        expert_attention_in_bfloat16: allow that in bfloat16, where the paper saw it diverge.
        fixed_capacity: slots of an expert for a group, whatever the factors say; null goes by the factors.
    """

    preset: str = ""
    vocab_size: int = 32128
    d_model: int = 768
    d_ff: int = 3072
    d_kv: int = 64
    num_heads: int = 12
    num_encoder_layers: int = 12
    num_decoder_layers: int = 12
    num_experts: int = 0
    num_sparse_encoder_layers: int = 0
    num_sparse_decoder_layers: int = 0
    activation: Literal["relu", "geglu"] = "relu"
    tied_embeddings: bool = True
    encoder_length: int = 512
    decoder_length: int = 114
    dropout: float = 0.0
    expert_dropout: float | None = None
    capacity_factor: float | None = 1.25
    eval_capacity_factor: float | None = 2.0
    min_capacity: int = 4
    capacity_rounding: Literal["round", "floor"] = "round"
    group_sequences: int = 1
    decoder_group_sequences: int | None = None
    jitter: float = 0.0
    route_padding: bool = False
    aux_loss_coef: float = 1e-2
    router_z_loss_coef: float = 0.0
    z_loss: float = 1e-4
    init_scale: float = 0.1
    init_rule: Literal["released", "paper"] = "released"
    router_init_std: float = 0.02
    router_dtype: Literal["float32", "compute", "narrow"] = "float32"
    router: Literal["switch", "top2", "noisy_topk", "ntlb"] = "switch"
    router_choices: int = 2
    router_priority: Literal["position", "probability"] = "position"
    exploration: Literal["argmax", "sample"] = "argmax"
    router_dropout: float = 0.0
    second_policy: Literal["all", "none", "threshold", "random"] = "random"
    second_threshold: float = 0.2
    second_place_loss: bool = False
    aux_loss_reduction: Literal["sum", "mean"] = "sum"
    expert_attention: bool = False
    expert_attention_in_bfloat16: bool = False
    fixed_capacity: int | None = None

    def num_layers(self, stack: Stack) -> int:
        """Blocks of a stack."""
        return self.num_encoder_layers if stack == "encoder" else self.num_decoder_layers

    def num_sparse(self, stack: Stack) -> int:
        """Sparse blocks of a stack; none when there are no experts."""
        if self.num_experts == 0:
            return 0
        return self.num_sparse_encoder_layers if stack == "encoder" else self.num_sparse_decoder_layers

    def is_sparse(self, stack: Stack, layer: int) -> bool:
        """Whether block `layer` (from 0) holds a Switch layer: the last of each run of `layers // sparse`."""
        sparse = self.num_sparse(stack)
        if sparse == 0:
            return False
        every = self.num_layers(stack) // sparse
        return layer % every == every - 1 and layer // every < sparse

    def length(self, stack: Stack) -> int:
        """Tokens of one sequence of a stack."""
        return self.encoder_length if stack == "encoder" else self.decoder_length

    def group_size(self, stack: Stack) -> int:
        """Consecutive sequences that form one routing group of a stack."""
        if stack == "decoder" and self.decoder_group_sequences is not None:
            return self.decoder_group_sequences
        return self.group_sequences

    @property
    def aux_loss_weight(self) -> float:
        """Coefficient of each Switch layer's load-balancing loss."""
        if self.aux_loss_reduction == "sum":
            return self.aux_loss_coef
        layers = sum(self.num_sparse(stack) for stack in STACKS) * (2 if self.expert_attention else 1)
        return self.aux_loss_coef / layers

    def slots(self, tokens: int, *, training: bool) -> int | None:
        """Slots one expert has for a routing group of `tokens` nominal tokens; None drops nothing."""
        if self.fixed_capacity is not None:
            return self.fixed_capacity
        factor = self.capacity_factor if training else self.eval_capacity_factor
        return capacity(factor, tokens, self.num_experts, self.min_capacity, self.capacity_rounding)

    @property
    def hidden_dropout_of_experts(self) -> float:
        """Dropout rate on the hidden units of experts."""
        return self.dropout if self.expert_dropout is None else self.expert_dropout

    @property
    def inner_dim(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.d_kv


def capacity(
    factor: float | None, tokens: int, num_experts: int, minimum: int, rounding: Literal["round", "floor"]
) -> int | None:
    """Slots one expert has for one routing group (paper equation 3).

    `tokens` is the nominal token count of the group: configured length x sequences, whatever is padding.
    None (no factor) means that nothing is dropped. "round" rounds half to even, as T5X does; "floor"
    truncates and never exceeds the tokens, as Mesh TensorFlow does.
    """
    if factor is None:
        return None
    if rounding == "floor":
        return max(min(tokens, int(tokens * factor / num_experts)), minimum)
    return max(round(factor * tokens / num_experts), minimum)
