"""`polyp evaluate`: how good a trained model is, on which images, and where it fails."""
