"""The definition of each operation in plain torch."""
