"""Training runs and sweeps: what is built, the Lightning module, the Trainer and its callbacks, checkpoints,
launching, the terminal.

May import runs, report, inference, model, data, metrics and the modules at the top.
"""
