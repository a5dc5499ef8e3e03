"""`polyp evaluate`: scores a trained model and shows where it fails."""
