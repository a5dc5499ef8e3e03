"""`polyp data`: what a data set is like, what is wrong with it, and what it has twice."""
