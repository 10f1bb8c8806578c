"""Datasets as NumPy arrays: read from files, checked, and split into training and test."""

from jaxmlp.data.datasets import DATASETS, load_dataset
from jaxmlp.data.examples import Dataset, Examples
from jaxmlp.data.rows import open_stored, stored_records
from jaxmlp.data.splits import split_stratified
from jaxmlp.data.standards import standardized
from jaxmlp.data.stored import StoredInputs
from jaxmlp.data.weights import class_weights, example_weights

__all__ = [
    "DATASETS",
    "Dataset",
    "Examples",
    "StoredInputs",
    "class_weights",
    "example_weights",
    "load_dataset",
    "open_stored",
    "split_stratified",
    "standardized",
    "stored_records",
]
