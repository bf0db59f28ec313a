"""Tells a spike of the loss from its usual wandering: median and median deviation of the last steps."""

from collections import deque
from statistics import median

_LEAST_SHARE = 1e-3
"""A loss that hardly moves has almost no deviation: so much of the median counts as one at least."""


class Spikes:
    """Watches one number of each step."""

    def __init__(self, factor: float, window: int) -> None:
        """`factor` median deviations above the median of the last `window` values are a spike; 0: nothing is."""
        self._factor, self._last = factor, deque[float](maxlen=window)

    def is_spike(self, value: float) -> bool:
        """Whether it stands out of the values before, of which half a window must be there; a spike is not kept."""
        if self._factor and 2 * len(self._last) >= (self._last.maxlen or 1):
            middle = median(self._last)
            deviation = max(median(abs(x - middle) for x in self._last), _LEAST_SHARE * abs(middle))
            if value > middle + self._factor * deviation:
                return True
        self._last.append(value)
        return False
