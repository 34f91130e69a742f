"""All policies by name."""

import re
from collections.abc import Callable

from dynscaling_jax.scaling.bandits import (
    pets,
    random,
    thompson,
    uab,
    ucb,
    uniform,
)
from dynscaling_jax.scaling.opportunity import opportunity_cost
from dynscaling_jax.scaling.posterior import posterior_gain
from dynscaling_jax.scaling.spec import parse
from dynscaling_jax.scaling.stopping import (
    adaptive_consistency,
    elimination,
    esc,
    lead_k,
    mmc,
)
from dynscaling_jax.types import Policy

POLICIES: dict[str, Callable[..., Policy]] = {
    factory.__name__: factory
    for factory in (
        uniform,
        random,
        ucb,
        thompson,
        posterior_gain,
        opportunity_cost,
        pets,
        uab,
        elimination,
        adaptive_consistency,
        esc,
        lead_k,
        mmc,
    )
}


def parse_policy(text: str) -> Policy:
    """`ucb(uncertainty=beta, c=0.2)` -> the policy with these settings.

    Raises ValueError as spec.parse does: with the known names, or the
    hyper-parameters that the policy has.
    """
    return parse(text, POLICIES, "policy")


def parse_policies(text: str) -> dict[str, Policy]:
    """`uniform,ucb(c=0.2)` -> the policies, by the text that names each.

    "all" stands for every policy with its defaults. Raises ValueError as
    parse_policy does, and where a policy is named twice.
    """
    names = split_names(text)
    if names == ["all"]:
        return {name: factory() for name, factory in POLICIES.items()}
    if len(set(names)) < len(names):
        raise ValueError(f"policies {text!r}: one is named twice")
    return {name: parse_policy(name) for name in names}


def split_names(text: str) -> list[str]:
    """`a, b(c=1, d=2)` -> a and b(c=1, d=2)."""
    return [name.strip() for name in re.split(r",(?![^(]*\))", text)]
