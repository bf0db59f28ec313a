"""Cross-entropy with z-loss over the whole vocabulary.

N tokens, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from benches.operations.case import COMPILED, Case, Size, Work, forward_backward, normal
from megaswitch.layers.cross_entropy import cross_entropy
from megaswitch.model.transformer import alone
from megaswitch.ops.ops import Ops

_Z = 1e-4


def cases(size: Size) -> list[Case]:
    """The decoder's 114 tokens of 8 sequences."""
    N, V = size.of(912, 16), size.of(32128, 100)
    logits = normal(N, V, dtype=torch.float32)
    narrow = logits.detach().to(size.dtype, copy=True).requires_grad_()
    target_N = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(0))
    tp = alone(torch.device("cpu")).tp

    def ours(ops: Ops) -> Work:
        def losses(logits_NV: Tensor) -> Tensor:  # as in training: the gradient takes the logits' place
            return cross_entropy(logits_NV, target_N, 0, _Z, tp, ops, consume=True).loss_N

        return forward_backward(losses, [logits])

    return [
        Case(
            f"cross_entropy {N}x{V}",
            ours,
            ("cross_entropy_statistics", "cross_entropy_gradient_"),
            {
                "F.cross_entropy and logsumexp": lambda: forward_backward(_library, [narrow], [target_N]),
                COMPILED: lambda: forward_backward(torch.compile(_library), [narrow], [target_N]),
            },
            {"F.cross_entropy, no z-loss": lambda: forward_backward(_without, [narrow], [target_N])},
            bytes=3.0 * N * V * size.dtype.itemsize,
        )
    ]


def _library(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    wide_NV = logits_NV.float()
    return F.cross_entropy(wide_NV, target_N, reduction="none") + _Z * torch.logsumexp(wide_NV, -1).square()


def _without(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV, target_N, reduction="none")
