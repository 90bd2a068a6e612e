"""Values of many pairs of layers together: what is gathered of each, and what is made of it."""
