"""Finds the compiled extension; without it the numpy twins answer, bit for bit the same and slower."""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib import import_module
from typing import Any

logger = logging.getLogger(__name__)

NATIVE_VERSION = 2
"""Raised with every change of a signature in `csrc/`, so that an extension left from an older build is not called."""


@lru_cache(maxsize=1)
def native() -> Any | None:
    """The module `megaswitch.data._native`, or None (with one warning) where it is missing or from another build."""
    try:
        _native = import_module("megaswitch.data._native")
    except ImportError as error:
        logger.warning(
            "the C++ data extension is missing (%s); numpy does its work, slower: build it with "
            "`pip install -e . --no-build-isolation`",
            error,
        )
        return None
    if _native.VERSION != NATIVE_VERSION:
        logger.warning(
            "the C++ data extension is of version %s, this code wants %s; numpy does its work, slower: build it again "
            "with "
            "`pip install -e . --no-build-isolation`",
            _native.VERSION,
            NATIVE_VERSION,
        )
        return None
    return _native
