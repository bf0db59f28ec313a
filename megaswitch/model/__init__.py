"""The Switch Transformer: its configuration, parameter list, stages, losses and counts."""
