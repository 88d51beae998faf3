"""Datasets, scenes and format adapters."""
