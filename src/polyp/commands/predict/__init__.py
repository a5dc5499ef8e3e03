"""New images and videos: masks, overlays, probability maps, and tables of the polyps."""
