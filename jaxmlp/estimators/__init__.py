"""Estimators for scikit-learn: its MLPClassifier and MLPRegressor, trained with our gradient."""

from jaxmlp.estimators.classifier import MLPClassifier
from jaxmlp.estimators.regressor import MLPRegressor
from jaxmlp.estimators.search import SweepSearchCV

__all__ = ["MLPClassifier", "MLPRegressor", "SweepSearchCV"]
