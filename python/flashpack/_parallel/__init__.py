"""Loads of the tensor-parallel parts of a model."""
