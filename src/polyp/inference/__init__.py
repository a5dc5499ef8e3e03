"""Trained models at work: from the images that people have to probabilities, masks and polyps of the same size."""
