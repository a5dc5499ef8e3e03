"""`polyp compare`: which run is best, whether the difference is more than chance, and what it costs."""
