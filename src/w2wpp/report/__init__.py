"""Figures and HTML pages from results.

Nothing here computes a result.
"""
