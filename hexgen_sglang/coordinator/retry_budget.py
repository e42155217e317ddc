"""How many tries may be repeated because workers were overloaded: a share of the requests.

Lives in the coordinator's event loop. A request whose worker died is not counted: it is sent
elsewhere whatever happens, and takes no more than the dead worker's share. What is counted are
tries that a living worker refused or let time out: repeated without a bound they turn an
overload into a collapse.
"""

from __future__ import annotations

from hexgen_sglang.core.errors import ConfigError


class RetryBudget:
    """Over any time, at most `reserve + share * requests` repeated tries.

    Args:
        share: repeated tries for each request, 0 to 10.
        reserve: what may be repeated at once after a quiet time, and at the start; at least 0.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(self, share: float, reserve: float) -> None:
        if not 0 <= share <= 10:
            raise ConfigError(f"share={share:g}: must be 0 to 10")
        if reserve < 0:
            raise ConfigError(f"reserve={reserve:g}: must be at least 0")
        self._share = share
        self._reserve = reserve
        self._left = reserve
        self.num_refused = 0

    @property
    def left(self) -> float:
        """Repeated tries that are allowed now."""
        return self._left

    def request_came(self) -> None:
        """A request was accepted."""
        self._left = min(self._reserve, self._left + self._share)

    def take(self) -> bool:
        """Whether one more try may be repeated; it is counted when it may."""
        if self._left < 1:
            self.num_refused += 1
            return False
        self._left -= 1
        return True
