"""What metrics are made of: sums over images and rows, in float64 where it counts."""
