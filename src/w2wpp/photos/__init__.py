"""Pixels in: reading pictures, finding and aligning faces, describing them.

Nothing here knows a base model.
"""
