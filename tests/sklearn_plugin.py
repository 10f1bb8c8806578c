"""A pytest plugin that puts our estimators in the place of scikit-learn's.

    python -m pytest -p sklearn_plugin --pyargs sklearn.neural_network.tests.test_mlp

scikit-learn's tests take the classes from `sklearn.neural_network`; they are replaced there before
the tests are imported. Those that test private attributes are skipped, by name and with a reason.
"""

import pytest
import sklearn.neural_network

import jaxmlp

NOT_OURS = {
    "test_gradient": "calls the private _loss_grad_lbfgs with the private layout of its buffers",
}


def pytest_configure() -> None:
    """Replace the classes."""
    sklearn.neural_network.MLPClassifier = jaxmlp.MLPClassifier
    sklearn.neural_network.MLPRegressor = jaxmlp.MLPRegressor


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is named above; fail where a test's module has not got our classes."""
    for item in items:
        reason = NOT_OURS.get(item.name.partition("[")[0])
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
        module = getattr(item, "module", None)
        if hasattr(module, "MLPClassifier"):
            assert module.MLPClassifier is jaxmlp.MLPClassifier
