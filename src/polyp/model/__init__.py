"""Networks, encoder weights, losses, optimisers, prediction, devices, exported models.

May import data, metrics and the modules below them.
"""
