"""Pictures of results: PNG, PDF or SVG files, drawn by matplotlib, which is imported only where something is drawn."""

from src.results.plots.layers import draw_grid, draw_pair
from src.results.plots.stitch import draw_stitch
from src.results.plots.stitches import draw_stitches
from src.results.plots.style import FORMATS, require_matplotlib

__all__ = ["FORMATS", "draw_grid", "draw_pair", "draw_stitch", "draw_stitches", "require_matplotlib"]
