"""Why a backend cannot be used."""


class Unavailable(Exception):
    """Says why a backend is not to be had here, and what would help."""
