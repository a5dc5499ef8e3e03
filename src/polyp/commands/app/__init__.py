"""Trained models on a web page and behind an HTTP API, on this machine and without any other."""
