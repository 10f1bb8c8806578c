"""Multi-layer perceptrons in JAX with gradients derived by hand, proved, and then used."""

__version__ = "0.1.0"
