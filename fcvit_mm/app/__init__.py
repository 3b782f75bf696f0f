"""A page in the browser on which trained models predict for images that are dropped there."""
