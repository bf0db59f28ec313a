"""The training loop: assembly, step, evaluation, record of the run."""
