"""Pretraining of Switch Transformers: see README.md for the rooms of the house."""
