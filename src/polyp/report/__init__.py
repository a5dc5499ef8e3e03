"""Tables (terminal, CSV, HTML, Markdown), charts, HTML pages, Markdown documents and pictures of masks.

May import images, files and errors.
"""
