"""Trained models at work: from images of any size to probabilities, masks and polyps of the same size.

May import runs, model and the modules below them.
"""
