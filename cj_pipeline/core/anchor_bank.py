"""The anchor bank: where anchors stand for a judge, learned from several nights, and how much a night moves them.

A night is a finished batch that judged the anchors of one assignment by one judge (kind `calibration`). Here: what a
night says of its anchors, the bank that several nights make, the prior it gives a later batch, and the check of a batch
against it. Pure functions and immutable values; a bank round-trips through JSON. Not here: which batches are nights
(the caller knows; nights of different judges or prompts do not belong into one bank) and the fit (`bradley_terry`).

Night t sees the anchors at

    y_t = a_t + (1 + b_t) θ + u_t + e_t      u_t ~ N(0, τ² I),  e_t ~ N(0, S_t),  b_t ~ N(0, slope_sd²)

θ are the positions (summing to zero), a_t is free because judgments see differences only, S_t is what the night's
judgments leave unknown, and u_t is the night's own: a judge that reads an anchor differently tonight. Given τ, θ is the
generalised least squares estimate with V_t = S_t + τ² I + slope_sd² θθᵀ (θ from the step before). τ is integrated under
log τ ~ N(log 0.2, 0.75²) and the restricted likelihood (Patterson & Thompson 1971): with few nights an estimate of τ,
such as DerSimonian and Laird's, is often zero, and positions would claim a precision they do not have. One night is
enough for a bank; τ is then what its prior says.

Drift of one anchor is tested as a mean shift (Cook & Weisberg 1982): d is fitted beside shift a and slope b,

    y = a + b m + d e_i + error      error ~ N(0, S + b² (Σ + τ² I)),  m, Σ the bank's positions and covariance

so that the line is that of the other anchors. The smallest shift that the test finds with 80 % power at 5 % two-sided
is (1.960 + 0.842) standard errors of d.

References:
    Cook, R. D. & Weisberg, S. (1982). Residuals and Influence in Regression. Chapman and Hall, section 2.2.
    DerSimonian, R. & Laird, N. (1986). Meta-analysis in clinical trials. Controlled Clinical Trials 7, 177-188.
    Patterson, H. D. & Thompson, R. (1971). Recovery of inter-block information when block sizes are unequal. Biometrika
        58, 545-554.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, inf
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from cj_pipeline.core.bradley_terry import BradleyTerryFit
from cj_pipeline.core.errors import InputError, listed
from cj_pipeline.core.models import Value
from cj_pipeline.core.score_prior import IndependentPrior, KnownItems, known_items

FloatArray = NDArray[np.float64]

NIGHT_SD_MEDIAN: Final = 0.2
"""Logits. Prior median of τ, how far a night moves an anchor."""

NIGHT_SD_LOG_SD: Final = 0.75
"""Prior standard deviation of log τ."""

SLOPE_SD: Final = 0.1
"""How far the slope of a batch on the bank may be from 1: a judge that sees differences larger or smaller tonight.

The same judge with the same prompts, so little; and for grades a stretch that is not expected does less harm than one
that is expected and does not come, because it moves students and anchors alike.
"""

DETECTABLE: Final = 1.959963984540054 + 0.8416212335729143
"""Standard errors: what a two-sided test at 5 % finds with a power of 80 %."""

# The grid of log τ: prior standard deviations either side at first, then closer until so many points are within
# exp(-12) of the highest density.
_GRID_REACH: Final = 5.5
_GRID_POINTS: Final = 25
_ENOUGH_POINTS: Final = 15
_LOG_DENSITY_DROP: Final = 12.0
_SLOPE_STEPS: Final = 4
# Relative to what an anchor's own information would be: below it, the other anchors fix no line through them.
_NO_INFORMATION: Final = 1e-9


@dataclass(frozen=True, eq=False)
class NightScores:
    """What the judgments of one night, and nothing else, say of its anchors. Made by `night_scores`.

    Attributes:
        night: the batch.
        anchors: (k,) what the bank calls them.
        scores: (k,) logits, summing to zero.
        covariance: (k, k) logits², centred like the scores.
    """

    night: str
    anchors: tuple[str, ...]
    scores: FloatArray
    covariance: FloatArray


class AnchorBank(Value):
    """Positions of anchors, with what is not known of them. Made by `estimate_bank`.

    Attributes:
        anchors: ascending.
        positions: of each, logits, summing to zero.
        covariance: of the positions, logits², centred like them.
        night_variance: E[τ²], logits²: what is to be expected of any single night.
        night_sd_interval: 95 % posterior interval of τ, logits.
        nights: the batches whose judgments are in it, ascending.
        slope_sd: the spread of nights' slopes it was estimated under.
    """

    anchors: tuple[str, ...]
    positions: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    night_variance: float
    night_sd_interval: tuple[float, float]
    nights: tuple[str, ...]
    slope_sd: float = 0.0

    @model_validator(mode="after")
    def _sound(self) -> "AnchorBank":
        k = len(self.anchors)
        if k < 2 or len(set(self.anchors)) < k or list(self.anchors) != sorted(self.anchors):
            raise ValueError("anchors: at least two, each once, ascending")
        if len(self.positions) != k or [len(row) for row in self.covariance] != [k] * k:
            raise ValueError(f"positions and covariance: {k} and {k} x {k} numbers, one for each anchor")
        matrix = np.array(self.covariance)
        numbers = [*self.positions, *matrix.ravel(), self.night_variance, self.slope_sd]
        if not np.isfinite(numbers).all() or self.night_variance <= 0 or self.slope_sd < 0:
            raise ValueError("positions, covariance and variances: finite, night_variance positive")
        if not np.allclose(matrix, matrix.T, atol=1e-9) or np.linalg.eigvalsh(matrix)[0] < -1e-9:
            raise ValueError("covariance: symmetric and positive semi-definite")
        return self

    def standard_errors(self) -> dict[str, float]:
        """Of each anchor's position relative to all of the bank, logits; a night's own variance is not in it."""
        roots = np.sqrt(np.maximum(np.diag(np.array(self.covariance)), 0.0))
        return {anchor: float(root) for anchor, root in zip(self.anchors, roots, strict=True)}

    def position_of(self, anchor: str) -> float:
        """Logits.

        Raises:
            InputError: the bank does not have the anchor.
        """
        return self.positions[self._places([anchor])[0]]

    def known_items(self, items: Mapping[str, int], n_items: int, *, batch: str) -> KnownItems:
        """The prior that the bank gives a batch's scores: SE² plus night-to-night variance, and a free slope.

        The covariance is that of the positions + E[τ²] I + `SLOPE_SD`² mmᵀ, with m the positions about their mean. The
        shift is free because the level of all other items is (`score_prior`).

        Args:
            items: anchor → item of the batch. Anchors that the bank does not have are items like others.
            n_items: number of items of the batch.
            batch: whose judgments are to be scored.

        Raises:
            InputError: the batch is one of the bank's nights, so that its judgments would count twice, or the bank has
                none of the anchors.
        """
        self._refuse_own_night(batch)
        both = sorted(set(items) & set(self.anchors))
        if not both:
            raise InputError(f"the anchor bank has none of the batch's anchors: it has {listed(self.anchors)}")
        mean, covariance = self._tonight(both)
        off = mean - mean.mean()
        covariance = covariance + SLOPE_SD**2 * np.outer(off, off)
        return known_items([items[anchor] for anchor in both], mean, covariance, n_items)

    def _tonight(self, anchors: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        """(k,) positions of some anchors and the (k, k) covariance of where any one night sees them."""
        places = self._places(anchors)
        covariance = np.array(self.covariance)[np.ix_(places, places)] + self.night_variance * np.eye(len(places))
        return np.array(self.positions)[places], covariance

    def _places(self, anchors: Sequence[str]) -> list[int]:
        place = {anchor: k for k, anchor in enumerate(self.anchors)}
        unknown = [anchor for anchor in anchors if anchor not in place]
        if unknown:
            raise InputError(f"the anchor bank does not have {listed(unknown)}; it has {listed(self.anchors)}")
        return [place[anchor] for anchor in anchors]

    def _refuse_own_night(self, batch: str) -> None:
        if batch in self.nights:
            raise InputError(
                f"the judgments of {batch} are in the anchor bank and would count twice: use a bank of other nights"
            )


def night_scores(night: str, anchors: Mapping[str, int], fit: BradleyTerryFit) -> NightScores:
    """What a fit's judgments say of some anchors once the fit's own prior of them is taken out again.

    Differences of the anchors have the posterior N(d, V) under the prior N(0, σ² I), so from the judgments alone they
    are N(R V⁻¹ d, R), R = (V⁻¹ - σ⁻² I)⁻¹. Without it, shrunken scores of every night would draw the bank together. The
    prior of other essays in the batch stays, and so does an order effect's uncertainty.

    Mode and curvature, not the moments by which grades go: with the prior taken out, those overshoot, the more the
    fewer judgments there are.

    Args:
        night: the batch.
        anchors: what the bank calls an anchor → its item in the fit, at least two.
        fit: of the batch, under an independent prior of some width.

    Raises:
        InputError: fewer than two anchors, a fit without a prior or with known items, or anchors that the judgments
            leave without a place: without a judgment, or not connected with the others.
    """
    names = tuple(sorted(anchors))
    if len(names) < 2:
        raise InputError(f"night {night}: a bank needs at least two anchors, not {len(names)}")
    fit = fit.at_normal_prior()
    if not isinstance(fit.prior, IndependentPrior) or fit.prior_sd is None:
        raise InputError(f"night {night}: its fit must be under an independent prior, without known items")
    items = np.array([anchors[name] for name in names], dtype=np.int64)
    labels = fit.components[items]
    apart = [name for name, label in zip(names, labels, strict=True) if label != np.bincount(labels).argmax()]
    if apart:
        raise InputError(f"night {night}: no judgment links anchors {listed(apart)} to the others; leave them out")
    contrasts = _contrasts(len(names))
    posterior = np.linalg.inv(contrasts.T @ fit.covariance_at_width()[np.ix_(items, items)] @ contrasts)
    alone = np.linalg.inv(posterior - fit.prior_sd**-2 * np.eye(len(names) - 1))
    scores: FloatArray = contrasts @ alone @ posterior @ contrasts.T @ fit.scores[items]
    covariance: FloatArray = contrasts @ alone @ contrasts.T
    return NightScores(night, names, scores, (covariance + covariance.T) / 2.0)


def estimate_bank(nights: Sequence[NightScores], *, slope_sd: float = 0.0) -> AnchorBank:
    """The bank that some nights make; see the module for the model. The order of nights does not matter.

    Args:
        nights: at least one. They need not all have the same anchors, but must hang together by anchors they share.
        slope_sd: spread of nights' slopes about 1; 0 if all nights see the same differences.

    Raises:
        InputError: no nights, one twice, or anchors that no night relates to the others.
    """
    ordered = sorted(nights, key=lambda night: night.night)
    names = [night.night for night in ordered]
    if not names or len(set(names)) < len(names):
        raise InputError("an anchor bank is made of one night or more, each given once")
    anchors = tuple(sorted({anchor for night in ordered for anchor in night.anchors}))
    _require_linked(ordered, anchors)
    place = {anchor: k for k, anchor in enumerate(anchors)}
    places = [np.array([place[anchor] for anchor in night.anchors]) for night in ordered]
    slope_positions: FloatArray = np.zeros(len(anchors))
    for _ in range(_SLOPE_STEPS if slope_sd > 0 else 1):
        widths, mass, found = _over_widths(ordered, places, slope_sd * slope_positions)
        modes = np.array([one.positions for one in found])
        slope_positions = mass @ modes
    positions = mass @ modes
    off = modes - positions
    covariance = np.tensordot(mass, np.array([one.covariance for one in found]), 1) + (mass[:, None] * off).T @ off
    return AnchorBank(
        anchors=anchors,
        positions=tuple(positions.tolist()),
        covariance=tuple(tuple(row) for row in ((covariance + covariance.T) / 2.0).tolist()),
        night_variance=float(mass @ widths**2),
        night_sd_interval=_interval(widths, mass),
        nights=tuple(names),
        slope_sd=slope_sd,
    )


@dataclass(frozen=True, eq=False)
class _AtWidth:
    """Generalised least squares at one τ."""

    positions: FloatArray
    covariance: FloatArray
    log_likelihood: float


def _over_widths(
    nights: Sequence[NightScores], places: Sequence[NDArray[np.int64]], slope: FloatArray
) -> tuple[FloatArray, FloatArray, list[_AtWidth]]:
    """A grid of τ that covers its posterior, the posterior masses, and what is found at each."""
    low, high = -_GRID_REACH, _GRID_REACH
    while True:
        offsets, spacing = np.linspace(low, high, _GRID_POINTS, retstep=True)
        widths = NIGHT_SD_MEDIAN * np.exp(NIGHT_SD_LOG_SD * offsets)
        found = [_at(nights, places, slope.size, float(width), slope) for width in widths]
        log_mass = np.array([one.log_likelihood for one in found]) - 0.5 * offsets**2
        log_mass -= log_mass.max()
        inside = offsets[log_mass > -_LOG_DENSITY_DROP]
        if inside.size >= _ENOUGH_POINTS:
            mass = np.exp(log_mass)
            return widths, mass / mass.sum(), found
        low, high = inside[0] - spacing, inside[-1] + spacing


def _interval(widths: FloatArray, mass: FloatArray) -> tuple[float, float]:
    """The 2.5 % and 97.5 % points of τ, its log density taken as linear in log τ between grid points."""
    at, log_density = np.log(widths), np.log(np.maximum(mass, 1e-300))
    fine = np.linspace(at[0], at[-1], 4001)
    cumulative = np.cumsum(np.exp(np.interp(fine, at, log_density)))
    low, high = np.interp([0.025, 0.975], cumulative / cumulative[-1], fine)
    return exp(float(low)), exp(float(high))


def _at(
    nights: Sequence[NightScores], places: Sequence[NDArray[np.int64]], n: int, width: float, slope: FloatArray
) -> _AtWidth:
    """Positions, their covariance and the restricted log likelihood (up to a constant) at one τ.

    Args:
        nights: the nights.
        places: of each night's anchors among all.
        n: number of anchors.
        width: τ, logits.
        slope: (n,) slope_sd times the positions.
    """
    contrasts = _contrasts(n)
    information, weighted, total, log_determinants = np.zeros((n - 1, n - 1)), np.zeros(n - 1), 0.0, 0.0
    for night, where in zip(nights, places, strict=True):
        # a night's shift is free: only contrasts of its scores say anything
        own = _contrasts(where.size)
        noise = night.covariance + width**2 * np.eye(where.size) + np.outer(slope[where], slope[where])
        variance = own.T @ noise @ own
        design, seen = own.T @ contrasts[where], own.T @ night.scores
        solved = np.linalg.solve(variance, np.column_stack([design, seen]))
        information += design.T @ solved[:, :-1]
        weighted += design.T @ solved[:, -1]
        total += float(seen @ solved[:, -1])
        log_determinants += float(np.linalg.slogdet(variance)[1])
    inverse = np.linalg.inv(information)
    estimate = inverse @ weighted
    log_determinants += float(np.linalg.slogdet(information)[1])
    residual = total - float(weighted @ estimate)
    return _AtWidth(contrasts @ estimate, contrasts @ inverse @ contrasts.T, -0.5 * (log_determinants + residual))


def _require_linked(nights: Sequence[NightScores], anchors: Sequence[str]) -> None:
    """Raise unless shared anchors connect all nights."""
    linked = set(nights[0].anchors)
    while more := {a for night in nights if linked & set(night.anchors) for a in night.anchors} - linked:
        linked |= more
    apart = [anchor for anchor in anchors if anchor not in linked]
    if apart:
        raise InputError(f"no night relates anchors {listed(apart)} to the others: judge some of both in one night")


@lru_cache(maxsize=64)
def _contrasts(n: int) -> FloatArray:
    """(n, n - 1) orthonormal columns, each summing to zero (Helmert); read-only."""
    matrix = np.zeros((n, n - 1))
    for k in range(1, n):
        matrix[:k, k - 1] = 1.0
        matrix[k, k - 1] = -k
        matrix[:, k - 1] /= (k * (k + 1)) ** 0.5
    matrix.flags.writeable = False
    return matrix


# -- drift -----------------------------------------------------------------------------------------------------


class AnchorDrift(Value):
    """One anchor of a batch against the bank, after the shift and slope of the other anchors.

    Attributes:
        anchor: what the bank calls it.
        bank_position: logits.
        batch_position: where the batch has it, brought to the bank's scale by shift and slope of all anchors, logits.
        drift: d, how far the batch has it above where the others and the bank put it, logits of the batch.
        se: of the drift, logits; infinite where the others fix no line.
        z: drift / se; None where se is infinite.
        detectable: smallest |drift| that this test finds with 80 % power at 5 % two-sided, logits.
    """

    anchor: str
    bank_position: float
    batch_position: float
    drift: float | None
    se: float
    z: float | None
    detectable: float


def check_drift(bank: AnchorBank, batch: NightScores) -> tuple[AnchorDrift, ...]:
    """Every anchor of a batch that the bank has, against the bank; a gauge, no decision.

    One batch sees an anchor with an error that is mostly its own: `detectable` says what it could have found. Whether
    an anchor has drifted is for nightly data to decide. With k anchors, one in twenty has |z| > 2 by chance.

    Raises:
        InputError: the batch is one of the bank's nights, or fewer than three of its anchors are in the bank.
    """
    bank._refuse_own_night(batch.night)
    both = [anchor for anchor in batch.anchors if anchor in set(bank.anchors)]
    if len(both) < 3:
        raise InputError(
            f"batch {batch.night}: drift is seen against a line through at least two other anchors, and the bank has "
            f"{len(both)} of its anchors"
        )
    mine = [batch.anchors.index(anchor) for anchor in both]
    seen, noise = batch.scores[mine], batch.covariance[np.ix_(mine, mine)]
    mean, spread = bank._tonight(both)
    design = np.column_stack([np.ones(len(both)), mean])
    slope = 1.0
    for _ in range(_SLOPE_STEPS):
        weight = np.linalg.inv(noise + slope**2 * spread)
        shift, slope = np.linalg.solve(design.T @ weight @ design, design.T @ weight @ seen)
    # what is left of the weight when shift and slope are free
    projected = weight @ design
    free = weight - projected @ np.linalg.solve(design.T @ projected, projected.T)
    rows = []
    for k, anchor in enumerate(both):
        sees = free[k, k] > _NO_INFORMATION * weight[k, k]
        se = float(free[k, k] ** -0.5) if sees else inf
        drift = float(free[k] @ seen / free[k, k]) if sees else None
        rows.append(
            AnchorDrift(
                anchor=anchor,
                bank_position=float(mean[k]),
                batch_position=float((seen[k] - shift) / slope),
                drift=drift,
                se=se,
                z=None if drift is None else drift / se,
                detectable=DETECTABLE * se,
            )
        )
    return tuple(rows)
