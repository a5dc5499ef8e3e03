"""The commands of `polyp`, a package for each: its options in options.py, its pages and tables beside what it
does.

May import training, inference, runs, report, model, data, metrics and the modules at the top.
"""
