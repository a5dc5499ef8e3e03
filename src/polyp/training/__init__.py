"""Training runs and sweeps: the Lightning modules, the Trainer, its callbacks and loggers, checkpoints,
several devices, child processes, the terminal.

May import runs, report, inference, model, data, metrics and the modules at the top.
"""
