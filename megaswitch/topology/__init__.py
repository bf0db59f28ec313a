"""Rank arithmetic, axes and process groups; no tensor passes through here."""
