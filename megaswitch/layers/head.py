"""The output head, the vocabulary split over tp: logits, or losses of targets.

B sequences, L tokens, N tokens of all of them, D d_model, V this rank's part of the vocabulary.

Communication: it enters a region; its losses are `cross_entropy`'s.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from megaswitch.layers import initial
from megaswitch.layers.cross_entropy import Goal, Losses, cross_entropy, tokens_of_block
from megaswitch.layers.embedding import EMBEDDING, embedding_specs
from megaswitch.layers.region import Region
from megaswitch.layers.weight_work import WeightWork, wide_product
from megaswitch.model.config import ModelConfig
from megaswitch.ops.ops import Ops
from megaswitch.params.derive import shard_range
from megaswitch.params.spec import ParamSpec

HEAD = "head"


def head_specs(config: ModelConfig) -> list[ParamSpec]:
    """The output matrix [d_model, vocabulary], or the table again when tied."""
    if config.tied_embeddings:
        return embedding_specs(config)
    shape, init = (config.d_model, config.vocab_size), initial.dense(config, config.d_model)
    return [ParamSpec(HEAD, shape, init, "lm_head", shards=(("tp", 1),))]


class Head(nn.Module):
    """Logits over this rank's part of the vocabulary; a tied table is used as it is, with the input scaled by
    d_model^-0.5."""

    def __init__(self, config: ModelConfig, params: Mapping[str, nn.Parameter], region: Region) -> None:
        super().__init__()
        self.region, self.tied = region, config.tied_embeddings
        self.weight = params[EMBEDDING if self.tied else HEAD]
        self.scale = config.d_model**-0.5 if self.tied else 1.0
        self.first, _ = shard_range(config.vocab_size, region.axis.size, region.axis.rank)

    def forward(self, x_BLD: Tensor, work: WeightWork) -> Tensor:
        """[B, L, V] in at least float32, of products of x's type."""
        return wide_product(self.inside(x_BLD, work), self.weight, work, transposed=self.tied)

    def inside(self, x_BLD: Tensor, work: WeightWork) -> Tensor:
        """What the matrix multiplies: all tokens, scaled."""
        return self.region.enter(x_BLD, work) * self.scale


class HeadLoss(nn.Module):
    """Losses of targets under a head's logits, which are not kept."""

    def __init__(self, config: ModelConfig, head: Head) -> None:
        super().__init__()
        self.head, self.z_loss = head, config.z_loss
        self.columns = -(-config.vocab_size // head.region.axis.size)  # of the rank that has most of them

    def forward(self, x_BLD: Tensor, target_N: Tensor, factor_N: Tensor, work: WeightWork, ops: Ops) -> Losses:
        """See `cross_entropy.Losses`, from ids int64 and what each token's loss counts."""
        head, tokens = self.head, target_N.shape[0]
        block = tokens_of_block(tokens, self.columns, x_BLD.dtype)
        goal = Goal(target_N - head.first, factor_N, self.z_loss, head.region.axis, block)
        inside_ND = head.inside(x_BLD, work).flatten(0, 1)
        return cross_entropy(inside_ND, head.weight, goal, work, ops, transposed=head.tied)
