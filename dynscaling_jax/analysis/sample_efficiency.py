"""Sample efficiency: samples that uniform allocation needs, to a policy's.

The goal is a share (the target) of the way from pass@1 to the accuracy of
the uniform vote at a fixed number of samples. An accuracy curve is the mean
over replicates after each round, joined by straight lines; what it needs is
where it first reaches the goal. Letters: R replicates, M rounds.
"""

import math
from typing import NamedTuple

import numpy as np

from dynscaling_jax.analysis.bank import Bank
from dynscaling_jax.analysis.replay import Curve

AXES = ("samples", "tokens", "steps")
LEAST_GAIN = 1e-9  # a mean of equal numbers may differ from them by less


class SampleEfficiency(NamedTuple):
    """Costs of a goal, and their ratio; above 1 beats uniform.

    nan where a curve never reaches the goal, is too short to set one, or gains
    nothing over one sample.

    axis is what ratio compares: samples or tokens, per question, or decode
    steps until the end of the run. ratio_ci95 is a percentile bootstrap over
    the replicates, which the two share: how sure the ratio is on these
    recorded samples, not on others of the same questions or on other
    questions; nan for a single replicate. A resample in which the policy never
    reaches the goal counts as ratio 0, one that sets no goal is left out.
    """

    target: float
    uniform_samples: float
    policy_samples: float
    ratio: float
    ratio_ci95: tuple[float, float]
    uniform_tokens: float
    policy_tokens: float
    token_ratio: float
    axis: str = "samples"
    uniform_steps: float = math.nan  # of a schedule without rounds
    policy_steps: float = math.nan


def pass_at_1(bank: Bank) -> float:
    """Averages the accuracy of one sample; an unreadable one is wrong."""
    return float(np.mean(bank.answer_QN == bank.reference_Q[:, None]))


def sample_efficiency(
    uniform: Curve,
    policy: Curve,
    single: float,
    target: float,
    full: float = 40,
    *,
    axis: str = "samples",
    resamples: int = 200,
    seed: int = 0,
) -> SampleEfficiency:
    """Compares a policy with uniform allocation at a target.

    Args:
      uniform: of uniform allocation, marked after every round.
      policy: of the policy, on the same replicates.
      single: pass@1.
      target: the share of the way, 0 to 1.
      full: samples a question of the uniform vote that sets the goal.
      axis: samples, tokens or steps.
      resamples: of the replicates, for the interval.
      seed: of these.
    """
    at = AXES.index(axis)

    def needs(take_R: np.ndarray | slice) -> np.ndarray:
        """The cost of each axis [A], of uniform and of the policy [2, A]."""
        curves = [
            (
                [cost_RM[take_R].mean(axis=0) for cost_RM in _costs(played)],
                played.accuracy_RM[take_R].mean(axis=0),
            )
            for played in (uniform, policy)
        ]
        (samples_M, *_), accuracy_M = curves[0]
        best = np.interp(full, samples_M, accuracy_M)
        if samples_M[-1] < full or best - single < LEAST_GAIN:
            return np.full((2, len(AXES)), np.nan)
        goal = single + target * (best - single)
        return np.array(
            [
                [first_reach(cost_M, accuracy_M, goal) for cost_M in costs]
                for costs, accuracy_M in curves
            ]
        )

    ours_A, theirs_A = needs(slice(None))
    replicates = len(uniform.accuracy_RM)
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(resamples):
        ours, theirs = needs(rng.integers(0, replicates, replicates))[:, at]
        if np.isfinite(ours):  # there is a goal
            ratios.append(0.0 if np.isnan(theirs) else ours / theirs)
    low = high = np.nan
    ratio_A = ours_A / theirs_A
    if replicates > 1 and np.isfinite(ratio_A[at]):
        low, high = np.quantile(ratios, [0.025, 0.975])
    steps = {}
    if uniform.steps_RM is not None:
        steps = {"uniform_steps": ours_A[2], "policy_steps": theirs_A[2]}
    return SampleEfficiency(
        target,
        uniform_samples=ours_A[0],
        policy_samples=theirs_A[0],
        ratio=ratio_A[at],
        ratio_ci95=(float(low), float(high)),
        uniform_tokens=ours_A[1],
        policy_tokens=theirs_A[1],
        token_ratio=ratio_A[1],
        axis=axis,
        **steps,
    )


def _costs(curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a curve spent along each of AXES, [R, M]."""
    steps_RM = curve.steps_RM
    if steps_RM is None:
        steps_RM = np.full_like(curve.samples_RM, np.nan)
    return curve.samples_RM, curve.tokens_RM, steps_RM


def first_reach(cost_M: np.ndarray, value_M: np.ndarray, goal: float) -> float:
    """Finds the cost at which the line through the points reaches the goal.

    The first such cost, by linear interpolation; nan where there is none.
    """
    there = np.flatnonzero(value_M >= goal)
    if not len(there):
        return float("nan")
    at = there[0]
    if at == 0:
        return float(cost_M[0])
    share = (goal - value_M[at - 1]) / (value_M[at] - value_M[at - 1])
    return float(cost_M[at - 1] + share * (cost_M[at] - cost_M[at - 1]))
