"""What Python gets: each a few lines over what the scripts use. `src` hands its names out, and loads it then."""
