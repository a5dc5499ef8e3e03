"""A run on the disk: its folder, when two runs are the same experiment, resuming, its data and its model.

May import model, data, report and the modules at the top.
"""
