"""A network cut at a layer; it knows no data set, no weights and no stitch."""
