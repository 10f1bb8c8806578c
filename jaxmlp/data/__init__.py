"""Datasets as NumPy arrays: read from files, checked, and split into training and test."""

from jaxmlp.data.datasets import DATASETS, load_dataset
from jaxmlp.data.examples import Dataset, Examples

__all__ = ["DATASETS", "Dataset", "Examples", "load_dataset"]
