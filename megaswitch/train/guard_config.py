"""What a run watches for while it trains (no torch here)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GuardConfig:
    """Guards.

    Args:
        nonfinite_limit: steps in a row whose loss or gradient is not finite before the run ends; each is skipped.
        rerun: whether such a step is computed once more, to tell a passing fault of the machine from a lasting one.
        spike_factor: a loss so many median deviations above the median of the last steps is a spike, after which the
            run goes back to its newest checkpoint and past the batches in between; 0: no such watch.
        spike_window: steps that the median is taken of.
        spike_rewinds: how often a run goes back before it ends.
        hang: seconds without any progress within a step after which every rank tells where it is, and the run ends;
            0 is four fifths of run.timeout.
        replicas_every: steps between comparisons of all weights that several ranks hold alike; 0: none.
        stragglers_every: steps between comparisons of how busy the ranks were; 0: none.
        straggler_factor: a rank that was so many times as busy as the median is named.
        router_share: a layer in which one expert is wanted by more than this share of the tokens is named.
        memory_share: a warning is given above this share of the host's or a device's memory.
        grace: seconds that a run is given from a signal to its end (of torchrun, Slurm or Kubernetes); a warning is
            given when a step and a save take longer. 0: not known.
    """

    nonfinite_limit: int = 10
    rerun: bool = False
    spike_factor: float = 0.0
    spike_window: int = 100
    spike_rewinds: int = 3
    hang: float = 0.0
    replicas_every: int = 0
    stragglers_every: int = 100
    straggler_factor: float = 1.5
    router_share: float = 0.9
    memory_share: float = 0.95
    grace: float = 0.0
