"""Is it any good: ID Score, table 1, collapse, distinctness.

Nothing here is needed to make a model.
"""
