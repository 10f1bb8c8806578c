"""Several members in the place of one network: fitted together, and what they predict averaged."""

import warnings
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state

from jaxmlp.estimators.together import Fit, fit_together, goes_together, prepared_fit


def fitted_members(
    estimator: Any, X: Any, y: Any, sample_weight: Any, validation: tuple[Any, Any, Any] | None
) -> list[Any]:
    """Return the fitted members of an ensemble, estimators of one network each.

    Their `random_state` are integers drawn from that of the ensemble.

    Args:
        estimator: The ensemble.
        X: (N, D).
        y: The targets.
        sample_weight: (N,) or None.
        validation: As of `BaseMLP._fit`, or None.

    Returns:
        As many as its `n_ensembles`.

    Raises:
        ValueError: What an ensemble cannot do, or as `fit` of a member.
    """
    for name, on in {
        "warm_start": estimator.warm_start,
        "noise_multiplier": estimator.noise_multiplier is not None,
    }.items():
        if on:
            raise ValueError(
                f"{name}: expected none with n_ensembles above 1, got {getattr(estimator, name)}"
            )
    rng = check_random_state(estimator.random_state)
    seeds = rng.randint(np.iinfo(np.int32).max, size=estimator.n_ensembles)
    members: list[Any] = [clone(estimator) for _ in seeds]
    for member, seed in zip(members, seeds, strict=True):
        member.set_params(n_ensembles=1, random_state=int(seed))
    if validation is not None or not goes_together(members[0]):
        names = "X_val", "y_val", "sample_weight_val"
        others = dict(zip(names, validation or (None, None, None), strict=True))
        for number, member in enumerate(members, 1):
            if estimator.verbose:
                print(f"Member {number} of {len(members)}")
            member.fit(X, y, sample_weight, **others)
        return members
    fits: list[Fit] = []
    for member in members:
        block = fits[0].examples.block if fits else None
        fits.append(prepared_fit(member, X, y, sample_weight, block))
    fit_together(fits)
    said = {(type(one), str(one)): one for fit in fits for one in fit.warned}
    for warning in said.values():
        warnings.warn(warning, stacklevel=5)
    for fit in fits:
        fit.warned.clear()
    return [fit.taken_over() for fit in fits]
