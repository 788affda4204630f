"""One file for each format: names of layers, tensors, scales.

Nothing here knows a dataset's folder.
"""
