"""RMSNorm with its weight."""

from collections.abc import Mapping

from torch import Tensor, nn

from megaswitch.model.config import ModelConfig
from megaswitch.ops.ops import Ops
from megaswitch.ops.reference.dropout import RowDrop
from megaswitch.params.spec import Init, ParamSpec


def norm_specs(name: str, config: ModelConfig) -> list[ParamSpec]:
    """The weight of one norm."""
    return [
        ParamSpec(name, (config.d_model,), Init("ones"), "norms", decay=False, tp_partial="sequence_parallel"),
    ]


class Norm(nn.Module):
    """RMSNorm over the last dimension."""

    def __init__(self, name: str, params: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.weight_D = params[name]

    def forward(self, x_BLD: Tensor, ops: Ops) -> Tensor:
        return ops.rms_norm(x_BLD, self.weight_D)

    def after(self, x_BLD: Tensor, y_BLD: Tensor, drop: RowDrop | None, ops: Ops) -> tuple[Tensor, Tensor]:
        """The residual stream x + y with dropout of y, and its norm."""
        return ops.residual_norm(x_BLD, y_BLD, self.weight_D, drop)
