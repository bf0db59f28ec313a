"""Schedules as data, their simulator, and the executor that runs them."""
