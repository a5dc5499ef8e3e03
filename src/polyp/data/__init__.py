"""The data: sets, splits, cache, augmentation, loaders."""
