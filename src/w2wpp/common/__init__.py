"""The ground floor: errors, files, progress, seeds, devices.

Nothing here knows what an adapter, a photo or a model is.
"""
