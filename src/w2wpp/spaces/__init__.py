"""Spaces of adapters: each a file here and a line in `base.REGISTRY`."""
