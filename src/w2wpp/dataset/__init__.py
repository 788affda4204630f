"""Adapters as rows on disk: shards, manifest, labels, splits.

Nothing here knows how a row came about.
"""
