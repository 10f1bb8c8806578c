"""Datasets as NumPy arrays: read from files, checked, and split into training and test."""

from jaxmlp.data.datasets import DATASETS, Dataset, Examples, load_dataset

__all__ = ["DATASETS", "Dataset", "Examples", "load_dataset"]
