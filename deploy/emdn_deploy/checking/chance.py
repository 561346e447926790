"""How many frames of an honest stack may stand out."""

from math import exp, lgamma, log, log1p

SHARE = 0.01  # honest stacks that may fail, for each reason


def allowed(count: int, rate: float, share: float = SHARE) -> int:
    """Return what of ``count`` stand out at most, but for a share of chances (binomial)."""
    left = 1.0
    for found in range(count):
        ways = lgamma(count + 1) - lgamma(found + 1) - lgamma(count - found + 1)
        left -= exp(ways + found * log(rate) + (count - found) * log1p(-rate))
        if left < share:
            return found
    return count
