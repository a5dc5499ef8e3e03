"""Networks, encoder weights, losses, optimisers, the Lightning module, devices, exported models.

May import data, metrics and the modules below them.
"""
