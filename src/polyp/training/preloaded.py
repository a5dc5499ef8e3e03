"""What a training run imports; the server that child processes are forked from imports this module."""

from polyp import terminal

with terminal.loading():
    import polyp.runs.model
    import polyp.training.console
    import polyp.training.stages  # noqa: F401
