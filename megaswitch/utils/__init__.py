"""Errors, logging, named seeds and timers: things that know nothing of models or processes."""
