"""The configuration of a run, composed of the dataclasses that stand beside the code they configure (no torch here)."""

from dataclasses import dataclass, field
from typing import Literal

from megaswitch.checkpoint.config import CheckpointConfig
from megaswitch.data.config import DataConfig
from megaswitch.model.config import ModelConfig, Recompute, Stack
from megaswitch.ops.config import OpsConfig
from megaswitch.optim.config import OptimConfig
from megaswitch.topology.config import LayoutConfig
from megaswitch.train.guard_config import GuardConfig


@dataclass(frozen=True)
class TrainConfig:
    """The training loop.

    Args:
        steps: optimizer steps of the whole run.
        stop_after: end (and save) after this step, before `steps` is reached; 0 goes to the end.
        global_batch: sequences of one step over all processes.
        micro_batch: sequences that pass through the model at once; a multiple of the routing groups.
        seed: of weights, data order, dropout and jitter.
        dtype: of weights and activations; "auto" is bfloat16 on a GPU and float32 on a CPU.
        recompute: activations computed again in the backward: "none", "selective" (hidden units, and attention's core
            in plain torch; kernels keep no attention weights) or "full" (each block).
        decoder_recompute: the choice for the decoder; "same": as in the encoder.
        objective: what is learned of text: "span_corruption" (T5's and the Switch Transformer's), "prefix_lm",
            "iid_denoising" or "ul2" (a mixture of denoisers, with data.mode_tokens). Tasks are learned as they are.
        compile: what compiles what the blocks do between products, kernels and collectives: "none", "inductor" (by
            torch.compile, in the first step; it pays where plain torch does the work, with dropout above all) or
            "aot_eager" (traced and not compiled, to find faults).
        deterministic: whether only operations that give the same bits each time are used, at some cost on a GPU.
    """

    steps: int = 1000
    stop_after: int = 0
    global_batch: int = 2048
    micro_batch: int = 1
    seed: int = 0
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    recompute: Recompute = "none"
    decoder_recompute: Literal["same", "none", "selective", "full"] = "same"
    objective: Literal["span_corruption", "prefix_lm", "iid_denoising", "ul2"] = "span_corruption"
    compile: Literal["none", "inductor", "aot_eager"] = "none"
    deterministic: bool = False

    def recompute_of(self, stack: Stack) -> Recompute:
        """What a stack's blocks compute again in the backward."""
        if stack == "encoder" or self.decoder_recompute == "same":
            return self.recompute
        return self.decoder_recompute


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation during training.

    Args:
        every: steps between evaluations; 0 evaluates only at the end.
        batches: global batches of one evaluation; 0 takes the whole validation set.
    """

    every: int = 500
    batches: int = 0


@dataclass(frozen=True)
class PlaceConfig:
    """Where a run lives.

    Args:
        dir: folder of the run's record and checkpoints; empty means `runs/` and the preset's name.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        timeout: seconds that a collective may take before the run ends.
        threads: torch threads of each process on a CPU; 0 divides the cores over the local processes.
        preflight: whether a run begins with a micro-batch of its own and what `megaswitch preflight` looks at.
    """

    dir: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    timeout: float = 600.0
    threads: int = 0
    preflight: bool = True


@dataclass(frozen=True)
class LogConfig:
    """What is shown and recorded.

    Args:
        every: steps between progress lines and TensorBoard scalars (metrics.jsonl has every step).
        images_every: steps between pictures of expert load in TensorBoard.
        tensorboard: whether TensorBoard events are written.
    """

    every: int = 10
    images_every: int = 100
    tensorboard: bool = True


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on.

    Args:
        model: the model.
        layout: how processes are arranged.
        train: the loop.
        optim: the optimizer.
        ops: which implementations of the operations are used.
        data: the corpora.
        eval: evaluation.
        checkpoint: checkpoints.
        run: the run's folder and device.
        log: progress and TensorBoard.
        guard: what is watched while it trains.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ops: OpsConfig = field(default_factory=OpsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: PlaceConfig = field(default_factory=PlaceConfig)
    log: LogConfig = field(default_factory=LogConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)

    @property
    def run_dir(self) -> str:
        """The run's folder."""
        return self.run.dir or f"runs/{self.model.preset or 'run'}"
