"""Reads, merges, prints and checks configurations; the dataclasses stand beside the code they configure."""
