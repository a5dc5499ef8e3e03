"""Reports: tables (terminal, CSV, HTML, Markdown), HTML pages, Markdown documents, pictures of masks.

May import images, files and errors.
"""
