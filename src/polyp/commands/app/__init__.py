"""`polyp app`: a web page and an HTTP API for trained models, which work without a network."""
