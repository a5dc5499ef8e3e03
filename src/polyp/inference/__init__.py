"""Trained models: from images to probabilities, masks and polyps of the same size."""
