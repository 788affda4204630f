"""From weights to points and back: PCA, the published VAE, the anchored VAE, and what one does with points.

Nothing here draws pictures.
"""
