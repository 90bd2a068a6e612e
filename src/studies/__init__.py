"""Declared sets of stitches and comparisons: planned, shared out among processes, gone on with, and read as one."""
