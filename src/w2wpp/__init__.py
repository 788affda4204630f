"""Weights2Weights++: a space of personal diffusion adapters that you can sample, interpolate and invert photos into.

The public names stand in `__init__.pyi`; each is imported on first use, so that `w2w --help` does not wait for torch.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, _public = lazy_loader.attach_stub(__name__, __file__)
__all__ = [*_public, "__version__"]
