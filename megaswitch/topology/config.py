"""How the processes of a run are arranged (no torch here)."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LayoutConfig:
    """Sizes of the mesh axes; the data-parallel size follows from the number of processes.

    Args:
        tp: tensor-parallel size.
        pp: pipeline-parallel size.
        ep: expert-parallel size; lies inside data x tensor parallelism and is no further factor of the world.
        etp: tensor-parallel size inside experts: 1 or tp.
        chunks: pipeline chunks a rank; null means 2 when pp > 1 (one of the encoder, one of the decoder).
        schedule: order of the pipeline's work: "1f1b" (interleaved when chunks > 1), "gpipe", or one that puts the
            weights' gradients where a rank would else wait: "zb_h1" (any chunks) or "zb_v" (2 chunks: the first rank
            holds the first and the last stage, the last rank those in the middle).
        dispatch: how tokens travel to their experts: "variable" (as many as are kept) or "padded" (all slots of every
            expert, for static shapes; needs capacity factors).
        stages: blocks of each pipeline stage in order, such as "4,4,8,8"; empty balances the stages by FLOPs.
        sequence_parallel: whether activations between tensor-parallel regions are split along the sequence.
    """

    tp: int = 1
    pp: int = 1
    ep: int = 1
    etp: int = 1
    chunks: int | None = None
    schedule: Literal["1f1b", "gpipe", "zb_h1", "zb_v"] = "1f1b"
    dispatch: Literal["variable", "padded"] = "variable"
    stages: str = ""
    sequence_parallel: bool = True

    @property
    def num_chunks(self) -> int:
        """Pipeline chunks a rank."""
        return self.chunks if self.chunks is not None else (2 if self.pp > 1 else 1)

    @property
    def num_stages(self) -> int:
        """Pipeline stages of the whole model."""
        return self.pp * self.num_chunks

    @property
    def v_placement(self) -> bool:
        """Whether the stages lie on the ranks in the V placement (`topology.placement`)."""
        return self.schedule == "zb_v" and self.pp > 1

    @property
    def stage_blocks(self) -> list[int]:
        """`stages` as numbers; empty where the stages are to be balanced. ValueError where one is no whole number."""
        return [int(number) for number in self.stages.split(",")] if self.stages.strip() else []
