"""The statistical model of grades: what anchors say about grade centres, and what that makes of every essay's score.

Here: one connected component of a batch as arrays, calibrated and graded. Not here: ids, labels, and what is said in
words (`grades`), scales (`grade_scale`), scores and their covariance (`bradley_terry`).

**Model.** Labels are numbered 0 to K-1, low to high. An essay of grade g has the true score theta ~ N(mu_g, tau²).
Centres climb by steps mu_(g+1) - mu_g > 0, gamma with mean d and coefficient of variation `STEP_CV`; their level is
free. The mean step d is log-uniform, and the spread within a grade is relative to it: log(tau/d) ~
N(log `SPREAD_SHARE`, `SPREAD_LOG_SD`²). An expert who is off by one grade with probability q (equally often up and
down) adds q d² to an anchor's variance.

**What judgments say.** Scores come as a Gaussian, mean and covariance V, from a fit under independent priors N(0,
sigma²). That prior does not know about grades, so it is taken out again where grades take its place:

    anchors, all at once   V' = V + V_A (sigma² I - V_AA)^-1 V_A^T    and the grade model is put in its place
    one student at a time  the same with one row ("cavity"), after the anchors' grades are in

Only the other students keep it. What is left of theta_i is what its comparisons say, and every covariance, with the
anchors and through them with the centres, counts once.

**Grid.** At each of 7 x 7 values of (d, tau/d) everything is Gaussian but for the steps, which enter by expectation
propagation: each gamma is replaced by the Gaussian factor that gives the right mean and variance of that step. Points
are weighted by the marginal likelihood of the anchors' scores, then

    P(g_i = k) ~ pi_k  sum over the grid of  weight x N(E[theta_i - mu_k]; 0, Var[theta_i - mu_k] + tau²)

Beyond the outermost centres the log density goes on with, above the top one, a variance no larger than that of any
higher grade, and below the bottom one than that of any lower grade: centres are in order, so not knowing how far down a
low grade lies is no reason to find it at the top.

**Shares of the grades.** pi ~ Dirichlet with mean `prior` and the strength of `DIRICHLET_PER_GRADE` students per label;
each student's grade is weighed by what the other students say about pi (collapsed variational Bayes, zeroth order). A
class counts for at most `CLASS_WORTH` students: the anchors' error, common to all, looks like a trait of the class.

**An anchor left out.** Everything about an anchor comes from the same equations less its own grade, by the
leave-one-out identities of Gaussian regression (W = (V'_AA + tau² I)^-1 is formed once per grid point).

References:
    Asuncion, A., Welling, M., Smyth, P. & Teh, Y. W. (2009). On smoothing and inference for topic models. UAI 25.
    Minka, T. P. (2001). Expectation propagation for approximate Bayesian inference. UAI 17, 362-369.
    Rasmussen, C. E. & Williams, C. K. I. (2006). Gaussian Processes for Machine Learning, section 5.4.2.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

STEP_CV: Final = 0.5
"""Coefficient of variation of the steps between centres."""
SPREAD_SHARE: Final = 0.5
"""Prior median of the spread within a grade, as a share of the mean step."""
SPREAD_LOG_SD: Final = 0.5
"""Prior standard deviation of the logarithm of that share."""
DIRICHLET_PER_GRADE: Final = 4.0
"""Students that the prior of the grades' shares is worth, per label."""
CLASS_WORTH: Final = 40.0
"""Students that a class counts for at most in the grades' shares: a large one would take the anchors' error, which
shifts everybody alike, for a trait of the class."""

_STEP_GRID: Final = np.linspace(-2.4, 2.4, 7)
_SPREAD_GRID: Final = np.linspace(-2.4, 2.4, 7)
_STEP_LOG_SD_RANGE: Final = (0.1, 1.0)
_SWEEPS: Final = 6
_SWEEPS_LEFT_OUT: Final = 3
_DAMPING: Final = 0.9
_NODES: Final = np.linspace(-9.0, 5.5, 27)
_NEGLIGIBLE: Final = 1e-4  # grid points of less weight than that, as a share of the largest, are left away
_PRIOR_LEFT: Final = 1e-6  # share of a prior that stays, lest what no judgment has touched become infinite
_SHARE_ROUNDS: Final = 200
_SHARE_TOLERANCE: Final = 1e-9
_ESSAYS_AT_ONCE: Final = 64
_BISECTIONS: Final = 26


@dataclass(frozen=True, eq=False)
class OwnPriors:
    """What the fit assumed of each essay's score, to be taken out where its grade stands in its place.

    Attributes:
        means: (n,) logits.
        precisions: (n,) logits⁻²; 0: nothing was assumed.
    """

    means: FloatArray
    precisions: FloatArray


@dataclass(frozen=True, eq=False)
class ScoreBelief:
    """What the judgments of one component say about its essays' scores, as far as grades need it.

    Attributes:
        means: (n,) logits.
        variances: (n,) logits².
        with_anchors: (n, a) covariance with the anchors' scores, logits².
        origin: mean and variance of what published scores are counted from, and its covariance with the anchors (a,).
            Its mean is 0; with `covariance` it is the mean of the component.
        anchors_prior: precision of the prior N(0, sigma²) that the anchors have; 0 if they have none, or one that
            earlier judgments have given them.
        own_priors: of the essays.
        anchors: (a,) which of the essays are anchors.
        grades: (a,) their grade numbers.
    """

    means: FloatArray
    variances: FloatArray
    with_anchors: FloatArray
    origin: tuple[float, FloatArray]
    anchors_prior: float
    own_priors: OwnPriors
    anchors: IntArray
    grades: IntArray


def believe(
    scores: FloatArray,
    ses: FloatArray,
    covariance: FloatArray | None,
    prior_sd: float | None,
    anchors: IntArray,
    grades: IntArray,
    *,
    placed: bool = False,
) -> ScoreBelief:
    """What is known of one component.

    Args:
        scores: (n,) logits.
        ses: (n,) standard errors, logits; used without covariance only.
        covariance: (n, n) of the scores, logits², up to shifts of all scores alike; None: scores are independent.
        prior_sd: width of the prior that scores and covariance come from; None: maximum likelihood.
        anchors, grades: as in `ScoreBelief`.
        placed: whether earlier judgments have placed the anchors (`score_prior.AnchoredPrior`). What these say stays;
            the prior of the other scores is then N(level, prior_sd²) around a free level.
    """
    nothing = OwnPriors(np.zeros(scores.size), np.zeros(scores.size))
    if covariance is None:
        with_anchors = np.zeros((scores.size, anchors.size))
        with_anchors[anchors, np.arange(anchors.size)] = ses[anchors] ** 2
        return ScoreBelief(scores, ses**2, with_anchors, (0.0, np.zeros(anchors.size)), 0.0, nothing, anchors, grades)
    rows = covariance.mean(axis=1)
    # differences do not say where all scores lie: the prior does, and without one nothing does
    level = float(rows.mean())
    centred = np.diag(covariance) - 2.0 * rows + level
    shift = prior_sd**2 / scores.size if prior_sd is not None else 10.0 * max(float(centred.max()), 1e-6)
    precision = 0.0 if prior_sd is None else prior_sd**-2
    own = nothing
    if prior_sd is not None:
        own = OwnPriors(np.zeros(scores.size), np.full(scores.size, precision))
        if placed:
            own = _around_the_others(scores - scores.mean(), covariance, prior_sd, anchors)
    return ScoreBelief(
        means=scores - scores.mean(),
        variances=np.maximum(centred, 0.0) + shift,
        with_anchors=covariance[:, anchors] - rows[:, None] - rows[anchors] + level + shift,
        origin=(shift, np.full(anchors.size, shift)),
        anchors_prior=0.0 if placed else precision,
        own_priors=own,
        anchors=anchors,
        grades=grades,
    )


def _around_the_others(means: FloatArray, covariance: FloatArray, prior_sd: float, anchors: IntArray) -> OwnPriors:
    """The prior of each score that is no anchor's, given the other such scores, where all are N(level, prior_sd²).

    With the level integrated out it is N(mean of the m - 1 others, prior_sd² (1 + 1/(m - 1))), the mean as uncertain as
    its judgments leave it; a score alone has none.
    """
    students = np.setdiff1d(np.arange(means.size), anchors)
    others = students.size - 1
    precisions, about = np.zeros(means.size), np.zeros(means.size)
    if others > 0:
        among = covariance[np.ix_(students, students)]
        mean_variance = (among.sum() - 2.0 * among.sum(axis=1) + np.diag(among)) / others**2
        about[students] = (means[students].sum() - means[students]) / others
        precisions[students] = 1.0 / (prior_sd**2 * (1.0 + 1.0 / others) + np.maximum(mean_variance, 0.0))
    return OwnPriors(about, precisions)


@dataclass(frozen=True, eq=False)
class Centres:
    """Joint posterior of the centres and some essays' scores, at each of G grid points.

    The second axis is 1 where all essays share the centres, or one per essay where each has its own (anchors left out).

    Attributes:
        weights: (G, 1 or n) of the grid points, summing to 1 over them.
        spread: (G,) tau, logits.
        step: (G,) d, logits.
        centres: (G, 1 or n, K) means, logits.
        covariance: (G, 1 or n, K, K) logits².
        means: (G, n) of the scores.
        variances: (G, n).
        with_centres: (G, n, K) covariance of score and centres.
    """

    weights: FloatArray
    spread: FloatArray
    step: FloatArray
    centres: FloatArray
    covariance: FloatArray
    means: FloatArray
    variances: FloatArray
    with_centres: FloatArray

    def average(self) -> FloatArray:
        """(1 or n, K) centres, averaged over the grid, logits."""
        result: FloatArray = (self.weights[..., None] * self.centres).sum(axis=0)
        return result

    def from_origin(self, mixing: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(G, m) means and variances of `mixing` (m, K) @ centres, less the last essay's score; rows add up to 1."""
        centres, covariance = self.centres[:, 0], self.covariance[:, 0]
        means = centres @ mixing.T - self.means[:, -1:]
        variances = np.einsum("mk,gkl,ml->gm", mixing, covariance, mixing)
        variances += self.variances[:, -1:] - 2.0 * self.with_centres[:, -1] @ mixing.T
        return means, np.maximum(variances, 0.0)


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the anchors of a component make of it.

    Attributes:
        everyone: of all essays of the component and, last, of the origin of the published scores.
        anchors: of the anchors, each left out of its own calibration.
        leverage: (a,) by how much of a logit an anchor's grade centre follows its score, 0 to 1.
        own_priors: what students' scores still have in `everyone`.
        expert_error: probability that an expert is off by one grade.
    """

    everyone: Centres
    anchors: Centres
    leverage: FloatArray
    own_priors: OwnPriors
    expert_error: float

    def misfits(self, grades: IntArray) -> FloatArray:
        """(a,) standard deviations by which anchors of these grade numbers score above expectation."""
        found = differences(self.anchors, np.arange(grades.size))
        own = np.arange(grades.size)
        off = found.means[:, own, grades]
        noise = self.anchors.spread**2 + self.expert_error * self.anchors.step**2
        variances = found.covariance[:, own, grades, grades] + noise[:, None]
        weights = self.anchors.weights
        mean = (weights * off).sum(axis=0)
        result: FloatArray = mean / np.sqrt((weights * (variances + (off - mean) ** 2)).sum(axis=0))
        return result

    def influences(self) -> FloatArray:
        """(a,) largest shift of a midpoint between centres if an anchor is left out, in mean steps."""
        shift = self.anchors.average() - self.everyone.average()
        step = float(self.everyone.weights[:, 0] @ self.everyone.step)
        result: FloatArray = np.abs((shift[:, 1:] + shift[:, :-1]) / 2.0).max(axis=1) / step
        return result


def anchor_line(scores: FloatArray, ses: FloatArray, grades: IntArray) -> tuple[float, float]:
    """Mean rise of anchors' scores per grade and its standard error, logits, by weighted least squares.

    Args:
        scores, ses, grades: (a,) of anchors of at least two grades that do not all have the same score.
    """
    weights = 1.0 / (scores.var() + ses**2)
    deviations = grades - np.average(grades, weights=weights)
    information = float(weights @ deviations**2)
    return float(weights * deviations @ scores) / information, information**-0.5


def calibrate(belief: ScoreBelief, labels: int, expert_error: float = 0.0) -> Calibration:
    """Fit the model of this module to one component.

    Args:
        belief: at least two anchors of different grades whose `anchor_line` climbs.
        labels: K.
        expert_error: probability that an expert's grade is off by one.
    """
    means, columns, variances, covariance = _without_anchors_prior(belief)
    values, vectors = np.linalg.eigh(covariance)
    onto = np.zeros((belief.grades.size, labels))
    onto[np.arange(belief.grades.size), belief.grades] = 1.0
    axes = _Axes(vectors, onto, vectors.T @ onto, vectors.T @ means[belief.anchors])
    points = _likely_points(belief, axes, np.maximum(values, 0.0), expert_error)
    everyone = _everyone(points, axes, means, columns @ vectors, variances)
    leverage = everyone.weights[:, 0] @ np.einsum("gkl,gal,ak->ga", points.covariance, axes.rows(points), onto)
    return Calibration(everyone, _left_out(points, axes), leverage, belief.own_priors, expert_error)


@dataclass(frozen=True, eq=False)
class _Axes:
    """Anchors in the basis in which their scores' errors are independent.

    Attributes:
        vectors: (a, a) the basis, in columns.
        onto: (a, K) 1 where an anchor has a grade.
        rotated: (a, K) the same in the basis.
        target: (a,) the anchors' scores in the basis, logits.
    """

    vectors: FloatArray
    onto: FloatArray
    rotated: FloatArray
    target: FloatArray

    def rows(self, points: "_Points") -> FloatArray:
        """(G, a, K) W @ `onto`."""
        result: FloatArray = np.einsum("ab,gb,bk->gak", self.vectors, points.omega, self.rotated)
        return result


@dataclass(frozen=True, eq=False)
class _Points:
    """Grid points (G,) and what the anchors make of the centres at each.

    Attributes:
        step, spread: d and tau, logits.
        noise: variance of an anchor's true score about its grade's centre, logits².
        omega: (G, a) eigenvalues of W = (V'_AA + noise I)^-1, 1/logits².
        precision, linear: (G, K, K) and (G, K), the anchors' part of the Gaussian form.
        fit: log density of the anchors' scores but for what depends on centres, and of the point's prior.
        weights: summing to 1.
        centres, covariance: (G, K) and (G, K, K), logits and logits².
        tight, shift: (G, K-1) the steps' factors.
    """

    step: FloatArray
    spread: FloatArray
    noise: FloatArray
    omega: FloatArray
    precision: FloatArray
    linear: FloatArray
    fit: FloatArray
    weights: FloatArray
    centres: FloatArray
    covariance: FloatArray
    tight: FloatArray
    shift: FloatArray


def _likely_points(belief: ScoreBelief, axes: _Axes, values: FloatArray, expert_error: float) -> _Points:
    """The grid, without points of negligible weight; `values` (a,) are the errors' variances along the axes."""
    step, spread = _grid(belief)
    noise = spread**2 + expert_error * step**2
    omega = 1.0 / (values + noise[:, None])
    precision = np.einsum("ak,ga,al->gkl", axes.rotated, omega, axes.rotated)
    linear = (omega * axes.target) @ axes.rotated
    log_prior = -0.5 * np.tile(_SPREAD_GRID**2, _STEP_GRID.size)
    fit = log_prior + 0.5 * (np.log(omega).sum(axis=1) - omega @ axes.target**2)
    centres, covariance, log_integral, (tight, shift) = _climb(precision, linear, step, _SWEEPS)
    weights = _normalised(fit + log_integral)
    keep = weights >= _NEGLIGIBLE * weights.max()
    every = (step, spread, noise, omega, precision, linear, fit, weights, centres, covariance, tight, shift)
    found = _Points(*(part[keep] for part in every))
    return replace(found, weights=found.weights / found.weights.sum())


def _everyone(points: _Points, axes: _Axes, means: FloatArray, reach: FloatArray, variances: FloatArray) -> Centres:
    """All essays and the origin, given the anchors' grades; `reach` (n, a) is their covariance with the axes."""
    weighted = reach * points.omega[:, None, :]
    through = weighted @ axes.rotated
    with_centres = through @ points.covariance
    return Centres(
        weights=points.weights[:, None],
        spread=points.spread,
        step=points.step,
        centres=points.centres[:, None],
        covariance=points.covariance[:, None],
        means=means + np.einsum("gnk,gk->gn", through, points.centres) - weighted @ axes.target,
        variances=variances - (weighted * reach).sum(axis=2) + (with_centres * through).sum(axis=2),
        with_centres=with_centres,
    )


def _left_out(points: _Points, axes: _Axes) -> Centres:
    """Each anchor, given the grades of all others, by its row of W."""
    anchors, labels = axes.onto.shape
    own = np.einsum("ab,gb,ab->ga", axes.vectors, points.omega, axes.vectors)
    residual = np.einsum("ab,gb,b->ga", axes.vectors, points.omega, axes.target)
    row = axes.rows(points)
    precision = points.precision[:, None] - row[..., :, None] * row[..., None, :] / own[..., None, None]
    linear = points.linear[:, None] - row * (residual / own)[..., None]
    centres, covariance, log_integral, _ = _climb(
        precision.reshape(-1, labels, labels),
        linear.reshape(-1, labels),
        np.repeat(points.step, anchors),
        _SWEEPS_LEFT_OUT,
        (np.repeat(points.tight, anchors, axis=0), np.repeat(points.shift, anchors, axis=0)),
    )
    centres, covariance = centres.reshape(row.shape), covariance.reshape(*row.shape, labels)
    through = axes.onto - row / own[..., None]
    with_centres = np.einsum("gak,gakl->gal", through, covariance)
    evidence = points.fit[:, None] + log_integral.reshape(own.shape) + 0.5 * (residual**2 / own - np.log(own))
    return Centres(
        weights=_normalised(evidence),
        spread=points.spread,
        step=points.step,
        centres=centres,
        covariance=covariance,
        means=residual / own + (through * centres).sum(axis=2),
        variances=np.maximum(1.0 / own - points.noise[:, None], 0.0) + (through * with_centres).sum(axis=2),
        with_centres=with_centres,
    )


def _without_anchors_prior(belief: ScoreBelief) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Means, covariance with anchors and variances of essays and origin, and the anchors' covariance, less prior."""
    origin_variance, origin_with = belief.origin
    means = np.append(belief.means, 0.0)
    columns = np.vstack([belief.with_anchors, origin_with])
    variances = np.append(belief.variances, origin_variance)
    if belief.anchors_prior > 0:
        precision = belief.anchors_prior * (1.0 - _PRIOR_LEFT)
        among = columns[belief.anchors]
        taken = np.linalg.inv(np.eye(among.shape[0]) / precision - among)
        moved = columns @ taken
        means = means + moved @ means[belief.anchors]
        variances = variances + (moved * columns).sum(axis=1)
        columns = columns + moved @ among
    covariance = columns[belief.anchors]
    return means, columns, variances, (covariance + covariance.T) / 2.0


def _grid(belief: ScoreBelief) -> tuple[FloatArray, FloatArray]:
    """(49,) mean steps and (49,) spreads, logits: around the line's slope, and relative to the step."""
    slope, error = anchor_line(belief.means[belief.anchors], np.sqrt(belief.variances[belief.anchors]), belief.grades)
    span = max(int(np.ptp(belief.grades)), 1)
    log_sd = np.clip(np.hypot(STEP_CV / span**0.5, error / slope), *_STEP_LOG_SD_RANGE)
    step = np.repeat(slope * np.exp(log_sd * _STEP_GRID), _SPREAD_GRID.size)
    share = np.tile(SPREAD_SHARE * np.exp(SPREAD_LOG_SD * _SPREAD_GRID), _STEP_GRID.size)
    return step, step * share


def _normalised(log_weights: FloatArray) -> FloatArray:
    weights: FloatArray = np.exp(log_weights - log_weights.max(axis=0))
    weights /= weights.sum(axis=0)
    return weights


def _climb(
    precision: FloatArray,
    linear: FloatArray,
    step: FloatArray,
    sweeps: int,
    start: tuple[FloatArray, FloatArray] | None = None,
) -> tuple[FloatArray, FloatArray, FloatArray, tuple[FloatArray, FloatArray]]:
    """Centres known as exp(-mu' P mu/2 + mu' h), given that their steps are gamma: expectation propagation.

    Args:
        precision: (N, K, K) P, singular before the steps are known.
        linear: (N, K) h.
        step: (N,) mean step d, logits.
        sweeps: parallel updates of all factors.
        start: factors to begin with; the gamma's own mean and variance if not given.

    Returns:
        Means (N, K), covariances (N, K, K), log of the integral up to a constant (N,), and the factors: precisions
        and linear terms (N, K-1) of the steps.
    """
    labels = linear.shape[1]
    climb = np.diff(np.eye(labels), axis=0)
    if start is None:
        tight = np.repeat((STEP_CV * step[:, None]) ** -2, labels - 1, axis=1)
        start = tight, tight * step[:, None]
    tight, shift = start
    for sweep in range(sweeps + 1):
        whole = precision + np.einsum("nj,jk,jl->nkl", tight, climb, climb)
        covariance = np.linalg.inv(whole)
        total = linear + shift @ climb
        means = np.einsum("nkl,nl->nk", covariance, total)
        steps = means @ climb.T
        widths = np.einsum("jk,nkl,jl->nj", climb, covariance, climb)
        # what all but a step's own factor say of it; beyond the outermost anchors that is nothing
        known = np.maximum(1.0 / widths - tight, 0.0)
        towards = np.where(known > 1e-9 * tight, steps / widths - shift, 0.0)
        log_mass, mean, variance = _gamma_times_normal(known, towards, step[:, None])
        if sweep == sweeps:
            break
        fresh = np.maximum(1.0 / variance - known, 1e-6 / variance)
        tight = tight + _DAMPING * (fresh - tight)
        shift = shift + _DAMPING * (mean / variance - towards - shift)
    log_mass -= 0.5 * ((towards + shift) ** 2 / (known + tight) - np.log((known + tight) / (2.0 * np.pi)))
    log_integral = 0.5 * ((total * means).sum(axis=1) - np.linalg.slogdet(whole)[1])
    return means, covariance, log_integral + log_mass.sum(axis=1), (tight, shift)


def _gamma_times_normal(
    precision: FloatArray, linear: FloatArray, mean: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Log integral, mean and variance of Gamma(s; `mean`, cv `STEP_CV`) exp(-precision s²/2 + linear s), elementwise.

    By the trapezoidal rule on log s around the mode, which converges exponentially in the number of nodes.
    """
    shape = STEP_CV**-2
    rate = shape / mean
    pull = rate - linear
    # the mode of u = log s: precision s² + pull s - shape = 0, in the form that does not cancel
    root = np.sqrt(pull**2 + 4.0 * precision * shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        falling = (root - pull) / (2.0 * precision)
    mode = np.where(pull > 0, 2.0 * shape / (root + np.abs(pull)), falling)
    width = 1.0 / np.sqrt(2.0 * precision * mode**2 + pull * mode)
    s = mode[..., None] * np.exp(width[..., None] * _NODES)
    log_density = shape * np.log(s) - pull[..., None] * s - 0.5 * precision[..., None] * s**2
    top = log_density.max(axis=-1, keepdims=True)
    mass = np.exp(log_density - top)
    total = mass.sum(axis=-1)
    first = (mass * s).sum(axis=-1) / total
    second = (mass * (s - first[..., None]) ** 2).sum(axis=-1) / total
    log_mass = top[..., 0] + np.log(total * width * (_NODES[1] - _NODES[0]))
    return log_mass + shape * np.log(rate) - math.lgamma(shape), first, second


# -- what an essay's score means ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Differences:
    """How far scores are from centres, from all that is known but the score's own prior; see `differences`.

    Attributes:
        means: (G, n, K) of theta_i - mu_k, logits.
        covariance: (G, n, K, K) of them, logits².
        log_density: (G, n, K) log N(mean; 0, variance + tau²), as the module has it beyond the outermost centres.
        spread: (G,) tau.
        log_weights: (G, 1 or n) of the grid points.
    """

    means: FloatArray
    covariance: FloatArray
    log_density: FloatArray
    spread: FloatArray
    log_weights: FloatArray


def differences(centres: Centres, essays: IntArray, own_priors: OwnPriors | None = None) -> Differences:
    """Differences of scores from centres.

    Args:
        centres: shared or not.
        essays: (n,) which of them.
        own_priors: of all essays, that each score is to be freed of; None for none.
    """
    shared = centres.centres.shape[1] == 1
    pick = np.zeros(1, dtype=np.int64) if shared else essays
    mean, variance = centres.means[:, essays], centres.variances[:, essays]
    between = centres.with_centres[:, essays]
    about, precision = (np.zeros(1), np.zeros(1)) if own_priors is None else _of(own_priors, essays)
    free = 1.0 / np.maximum(1.0 - precision * variance, _PRIOR_LEFT)
    bend = precision * free
    theta = about + (mean - about) * free
    mu = centres.centres[:, pick] + (bend * (mean - about))[..., None] * between
    # covariance of theta - mu_k and theta - mu_l, the prior taken out of theta by a rank-one update
    covariance = centres.covariance[:, pick] + (bend[..., None] * between)[..., :, None] * between[..., None, :]
    freed = between * free[..., None]
    covariance = covariance - freed[..., :, None] - freed[..., None, :] + (variance * free)[..., None, None]
    means = theta[..., None] - mu
    variances = np.maximum(np.diagonal(covariance, axis1=2, axis2=3), 0.0) + centres.spread[:, None, None] ** 2
    beyond = np.maximum(means[..., -1:], 0.0) + np.minimum(means[..., :1], 0.0)
    of_higher = np.minimum.accumulate(variances[..., ::-1], axis=-1)[..., ::-1]
    of_lower = np.minimum.accumulate(variances, axis=-1)
    misfit = (means - beyond) ** 2 / variances
    # means² - (means - beyond)² in product form, exactly 0 inside
    misfit += beyond * (2.0 * means - beyond) / np.where(beyond > 0, of_higher, of_lower)
    log_weights = np.log(np.maximum(centres.weights[:, pick], 1e-300))
    return Differences(means, covariance, -0.5 * (np.log(variances) + misfit), centres.spread, log_weights)


def _of(priors: OwnPriors, essays: IntArray) -> tuple[FloatArray, FloatArray]:
    return priors.means[essays], priors.precisions[essays]


def likelihoods(found: Differences) -> FloatArray:
    """(n, K) likelihood of each grade, up to a factor per essay; the largest is 1."""
    joint = found.log_density + found.log_weights[..., None]
    result: FloatArray = np.exp(joint - joint.max(axis=(0, 2), keepdims=True)).sum(axis=0)
    result /= result.max(axis=1, keepdims=True)
    return result


@dataclass(frozen=True, eq=False)
class Shares:
    """Grades of students under one distribution of grades, fitted to all of them.

    Attributes:
        probabilities: (n, K) of each student's grade.
        others: (n, K) the expected shares given the other students, by which a student's grade was weighed.
        everyone: (K,) the expected shares given all of them.
    """

    probabilities: FloatArray
    others: FloatArray
    everyone: FloatArray


def fit_shares(likelihood: FloatArray, prior: FloatArray) -> Shares:
    """Fit the shares of the grades.

    Args:
        likelihood: (n, K), positive somewhere in every row.
        prior: (K,) positive, summing to 1: the Dirichlet's mean.
    """
    pseudo = DIRICHLET_PER_GRADE * prior.size * prior
    found = likelihood * prior
    found /= found.sum(axis=1, keepdims=True)
    others = np.tile(prior, (likelihood.shape[0], 1))
    worth = min(1.0, CLASS_WORTH / max(likelihood.shape[0], 1))
    for _ in range(_SHARE_ROUNDS):
        others = pseudo + worth * (found.sum(axis=0) - found)
        others /= others.sum(axis=1, keepdims=True)
        fresh = likelihood * others
        fresh /= fresh.sum(axis=1, keepdims=True)
        change = float(np.abs(fresh - found).max(initial=0.0))
        found = fresh
        if change < _SHARE_TOLERANCE:
            break
    counts = pseudo + worth * found.sum(axis=0)
    return Shares(found, others, counts / counts.sum())


def cuts(centres: FloatArray, spread: FloatArray, weights: FloatArray) -> FloatArray:
    """Scores at which the median grade changes, were centres and score exact: P(g > k | cut_k) = 1/2.

    Args:
        centres: (..., K) increasing, logits.
        spread: (...) tau, logits.
        weights: (K,) how common the grades are, positive.

    Returns:
        (..., K-1), increasing; midpoints of neighbouring centres where there are two grades, equally common.
    """
    labels = centres.shape[-1]
    margin = 6.0 * spread[..., None] + np.abs(np.log(weights)).max() * spread[..., None] ** 2 / np.diff(
        centres, axis=-1
    ).min(axis=-1, keepdims=True)
    low = np.broadcast_to(centres[..., :1] - margin, (*centres.shape[:-1], labels - 1)).copy()
    high = np.broadcast_to(centres[..., -1:] + margin, low.shape).copy()
    above = np.arange(labels) > np.arange(labels - 1)[:, None]
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        z = (middle[..., None] - centres[..., None, :]) / spread[..., None, None]
        mass = weights * np.exp(-0.5 * (z**2 - (z**2).min(axis=-1, keepdims=True)))
        over = (mass * above).sum(axis=-1) >= 0.5 * mass.sum(axis=-1)
        high, low = np.where(over, middle, high), np.where(over, low, middle)
    result: FloatArray = (low + high) / 2.0
    return result


@dataclass(frozen=True, eq=False)
class Standing:
    """Where essays stand to the cuts.

    Attributes:
        exact: (n, K) probability of each grade at the exact score: of lying between its two cuts.
        distances: (n, K-1) expected score minus cut, logits.
        errors: (n, K-1) standard deviation of that difference, logits.
    """

    exact: FloatArray
    distances: FloatArray
    errors: FloatArray


def standing(found: Differences, offsets: FloatArray, weights: FloatArray) -> Standing:
    """Where essays stand to the cuts, given what their grades probably are.

    Args:
        found: of the essays.
        offsets: (G, 1 or n, K-1) cut minus midpoint of neighbouring centres, logits.
        weights: (n, K) or (K,) how common each grade is.
    """
    from scipy.special import ndtr

    halves = middles(found.means.shape[2])
    mean = found.means @ halves.T - offsets
    across = halves @ found.covariance
    variance = np.maximum(np.einsum("gnjk,jk->gnj", across, halves), 0.0)
    seen = np.diagonal(found.covariance, axis1=2, axis2=3) + found.spread[:, None, None] ** 2
    gain = across / seen[..., None, :]
    centre = mean[..., None] - gain * found.means[..., None, :]
    rest = np.maximum(variance[..., None] - gain * across, 1e-300)
    joint = found.log_density + found.log_weights[..., None] + np.log(weights)
    joint = np.exp(joint - joint.max(axis=(0, 2), keepdims=True))
    joint /= joint.sum(axis=(0, 2), keepdims=True)
    over = np.einsum("gnjk,gnk->nj", ndtr(centre / np.sqrt(rest)), joint)
    # rounding must not make a higher cut likelier to be passed
    over = np.minimum.accumulate(np.clip(over, 0.0, 1.0), axis=1)
    ends = np.ones((over.shape[0], 1))
    grid = np.exp(found.log_weights)[..., None]
    distance = (grid * mean).sum(axis=0)
    error = np.sqrt((grid * (variance + (mean - distance) ** 2)).sum(axis=0))
    return Standing(-np.diff(np.hstack([ends, over, 0.0 * ends]), axis=1), distance, error)


def middles(labels: int) -> FloatArray:
    """(K-1, K) matrix that makes midpoints of neighbours out of centres."""
    return (np.eye(labels - 1, labels) + np.eye(labels - 1, labels, 1)) / 2.0


def in_parts(essays: IntArray) -> list[IntArray]:
    """The essays in parts whose differences fit a processor's cache."""
    return np.array_split(essays, -(-essays.size // _ESSAYS_AT_ONCE)) if essays.size else []
