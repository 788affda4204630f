"""The frozen pipeline that all adapters share: load it, draw with it, build, train and check a small one.

Nothing here trains adapters.
"""
