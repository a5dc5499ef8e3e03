"""The model: networks, losses, optimisers, the Lightning module."""
