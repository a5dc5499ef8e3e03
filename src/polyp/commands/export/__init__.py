"""`polyp export`: a trained model as one file that runs without polyp and without torch."""
