"""Runs and sweeps on the disk: their folders, configurations and overrides, resuming, data and models.

May import model, data, report and the modules at the top.
"""
