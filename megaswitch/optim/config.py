"""Optimizer and learning-rate settings (no torch here)."""

from dataclasses import dataclass
from typing import Literal

AdafactorRule = Literal["t5x", "mtf"]


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer.

    Args:
        name: "adafactor" (the paper's) or "adamw".
        lr: base of the learning rate; null means 1.0 for Adafactor and 0.1 for AdamW under "rsqrt",
            0.01 and 0.001 under the other schedules.
        schedule: "rsqrt": lr / sqrt(max(step, warmup_steps)), without ramp (T5); "constant" and "cosine" ramp
            up linearly over warmup_steps; "cosine" ends at a tenth of lr at train.steps.
        warmup_steps: see schedule.
        clip: largest global gradient norm; 0 switches clipping off, as in the paper's recipe.
        min_dim_to_factor: Adafactor factors a matrix only when both sides reach this (under "t5x", experts always).
        adafactor_rule: Adafactor as published: "t5x" (factors and clips expert by expert; the released models') or
            "mtf" (mesh-tensorflow: factors the two largest dimensions, clips by whole tensors, experts together).
        multiply_by_parameter_scale: whether Adafactor's steps are relative to each parameter's root mean square.
        decay_rate: Adafactor's second-moment decay is 1 - step^-decay_rate.
        update_clip: Adafactor's largest root mean square of an update.
        beta1: AdamW's first-moment decay.
        beta2: AdamW's second-moment decay.
        eps: AdamW's epsilon.
        weight_decay: AdamW's decay of matrices (norms and biases do not decay).
        grad_dtype: type in which gradients are added up and summed over ranks: "float32" (at least), or "bfloat16"
            for half the memory and traffic.
        moment_dtype: type of AdamW's moments between steps: "float32" (at least) or "bfloat16", which rounds away what
            changes them by less than a 256th: it wants a beta2 of 0.99 or less.
        master: "separate": weights in train.dtype beside masters in at least float32; "only": the masters alone,
            cast where they are used (less memory; twice the all-gather's bytes in bfloat16).
        zero: whether masters and moments are divided over the data-parallel ranks (ZeRO-1).
        bucket_elements: elements of one gradient bucket.
    """

    name: Literal["adafactor", "adamw"] = "adafactor"
    lr: float | None = None
    schedule: Literal["rsqrt", "constant", "cosine"] = "rsqrt"
    warmup_steps: int = 10_000
    clip: float = 0.0
    min_dim_to_factor: int = 128
    adafactor_rule: AdafactorRule = "t5x"
    multiply_by_parameter_scale: bool = True
    decay_rate: float = 0.8
    update_clip: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_dtype: Literal["float32", "bfloat16"] = "float32"
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    master: Literal["separate", "only"] = "separate"
    zero: bool = True
    bucket_elements: int = 1 << 25

    @property
    def base_lr(self) -> float:
        """The learning rate's base when none is given."""
        if self.lr is not None:
            return self.lr
        adafactor, adamw = (1.0, 0.1) if self.schedule == "rsqrt" else (0.01, 0.001)
        return adafactor if self.name == "adafactor" else adamw
