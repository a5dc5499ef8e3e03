"""`polyp compare`: which run is best, whether the difference is real, and what it costs."""
