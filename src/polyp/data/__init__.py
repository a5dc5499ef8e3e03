"""Data sets: where they come from, their masks, splits, near-duplicates, the cache, augmentation and loaders.

May import metrics, report, images and the modules below them.
"""
