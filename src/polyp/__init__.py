"""polyp: train, sweep and compare polyp segmentation networks."""

__version__ = "0.5.0"
