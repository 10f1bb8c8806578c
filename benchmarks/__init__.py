"""Measurements of jaxmlp, each run with one command."""
