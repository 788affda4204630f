"""From a photo to a point: objective, gradient, searches, and the encoder.

Nothing here scores the result.
"""
