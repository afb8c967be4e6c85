"""Loads by all ranks together."""
