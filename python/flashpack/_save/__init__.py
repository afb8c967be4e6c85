"""Saves of tensors."""
