"""Passes over images, and what is read off them."""
