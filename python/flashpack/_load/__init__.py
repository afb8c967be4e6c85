"""Loads of tensors, by name or by block."""
