"""polyp: train, sweep and compare polyp segmentation networks."""
