"""Reports: tables (terminal, CSV, HTML, Markdown), HTML pages, Markdown documents, pictures of masks.

It may import polyp.files, polyp.errors and polyp.images, and knows nothing of runs, data sets or commands.
"""
