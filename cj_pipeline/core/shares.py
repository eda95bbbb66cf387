"""Shares of counted cases with their uncertainty.

References:
    Brown, L. D., Cai, T. T. & DasGupta, A. (2001). Interval estimation for a binomial proportion. Statistical Science
        16, 101-133.
    Wilson, E. B. (1927). Probable inference, the law of succession, and statistical inference. JASA 22, 209-212.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Final

from cj_pipeline.core.errors import InputError

_Z95: Final = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """A share of counted cases with its uncertainty.

    Attributes:
        count, total: cases, and out of how many.
        share: count / total; None when total is 0.
        interval: 95 % Wilson interval; (0, 1) when total is 0.
    """

    count: int
    total: int
    share: float | None
    interval: tuple[float, float]


def share_of(count: int, total: int) -> Share:
    """A share with its 95 % Wilson interval (Wilson 1927; recommended by Brown, Cai & DasGupta 2001).

    Raises:
        InputError: not 0 <= count <= total.
    """
    if not 0 <= count <= total:
        raise InputError(f"a share needs 0 <= count <= total, not {count} of {total}")
    if total == 0:
        return Share(0, 0, None, (0.0, 1.0))
    return Share(count, total, count / total, wilson_interval(count / total, total))


def wilson_interval(share: float, total: float) -> tuple[float, float]:
    """95 % interval of a share of `total` > 0 cases."""
    centre = (share + _Z95**2 / (2.0 * total)) / (1.0 + _Z95**2 / total)
    reach = _Z95 / (1.0 + _Z95**2 / total) * sqrt(share * (1.0 - share) / total + _Z95**2 / (4.0 * total**2))
    return max(0.0, centre - reach), min(1.0, centre + reach)
