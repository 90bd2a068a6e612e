"""Model stitching and representation comparison; the scripts beside this package are its users."""
