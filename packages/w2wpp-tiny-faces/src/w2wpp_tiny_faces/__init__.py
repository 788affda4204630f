"""The embedded small world: a 64x64 Stable Diffusion pipeline, adapters over it, a space and its encoder.

Files alone; no code may live here.
"""
