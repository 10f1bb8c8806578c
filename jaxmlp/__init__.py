"""Multi-layer perceptrons in JAX with gradients derived by hand, proved, and then used."""

import importlib
from typing import TYPE_CHECKING, Any

from jaxmlp.backprop import Trace, backward, forward
from jaxmlp.curvature import (
    Eigenpairs,
    gauss_newton_vector_product,
    hessian_eigenvalues,
    hessian_vector_product,
)
from jaxmlp.evaluation import Metrics, evaluate, predictions
from jaxmlp.fisher import (
    KroneckerFactors,
    gauss_newton_diagonal,
    kfac_factors,
    neural_tangent_kernel,
)
from jaxmlp.gradient_statistics import (
    NoiseScale,
    gradient_gram_matrix,
    gradient_noise_scale,
    gradient_second_moment,
    gradient_variance,
)
from jaxmlp.gradients import (
    input_gradients,
    logits,
    loss,
    loss_and_gradient,
    weighted_gradient_sum,
)
from jaxmlp.influence import influence, self_influence
from jaxmlp.network import Layer, Network, init, with_mean_outputs
from jaxmlp.per_example import (
    clipped_gradient_sum,
    per_example_gradient_norms,
    per_example_gradients,
)
from jaxmlp.privacy import private_gradient
from jaxmlp.scaling import Scaling
from jaxmlp.training.ensembles import EnsembleFit, fit_ensemble
from jaxmlp.training.epochs import Fit
from jaxmlp.training.loop import fit
from jaxmlp.training.members import init_members, member
from jaxmlp.training.models import load, save
from jaxmlp.uncertainty import (
    Calibration,
    EnsemblePredictions,
    calibration,
    ensemble_predictions,
)

if TYPE_CHECKING:
    from jaxmlp.estimators import MLPClassifier, MLPRegressor, SweepSearchCV
    from jaxmlp.verification.checks import check_gradients

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load what few programs need, or what takes scikit-learn, where it is asked for."""
    if name in ("exports", "plots", "verification"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in ("MLPClassifier", "MLPRegressor", "SweepSearchCV"):
        from jaxmlp import estimators

        return getattr(estimators, name)
    if name == "check_gradients":
        from jaxmlp.verification.checks import check_gradients

        return check_gradients
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names that a shell completes: also those that are not loaded yet."""
    return sorted({*globals(), *__all__, "exports", "plots", "verification"})


__all__ = [
    "Calibration",
    "Eigenpairs",
    "EnsembleFit",
    "EnsemblePredictions",
    "Fit",
    "KroneckerFactors",
    "Layer",
    "MLPClassifier",
    "MLPRegressor",
    "Metrics",
    "Network",
    "NoiseScale",
    "Scaling",
    "SweepSearchCV",
    "Trace",
    "__version__",
    "backward",
    "calibration",
    "check_gradients",
    "clipped_gradient_sum",
    "ensemble_predictions",
    "evaluate",
    "fit",
    "fit_ensemble",
    "forward",
    "gauss_newton_diagonal",
    "gauss_newton_vector_product",
    "gradient_gram_matrix",
    "gradient_noise_scale",
    "gradient_second_moment",
    "gradient_variance",
    "hessian_eigenvalues",
    "hessian_vector_product",
    "influence",
    "init",
    "init_members",
    "input_gradients",
    "kfac_factors",
    "load",
    "logits",
    "loss",
    "loss_and_gradient",
    "member",
    "neural_tangent_kernel",
    "per_example_gradient_norms",
    "per_example_gradients",
    "predictions",
    "private_gradient",
    "save",
    "self_influence",
    "weighted_gradient_sum",
    "with_mean_outputs",
]
