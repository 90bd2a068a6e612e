"""How far numbers of another device may be from the processor's, in one place: relatively, and in their units.

On a processor the tests that use them compare it with itself, so that they can fail there too.
"""

# float32 products whose sums are float64: what CKA, distances and neighbours are made of
METRIC = 2e-5
# whole comparisons of networks: roundings of both, and neighbours that may change places
COMPARED = 1e-3
# float64 throughout: moments and what follows from them
MOMENTS = 1e-6
# outputs of float32 networks, in units of their largest
NETWORK = 2e-5
# a stitch after some steps, whose roundings add up: its map in units of its largest weight, its accuracy in shares
TRAINED_MAP, TRAINED_ACCURACY = 2e-2, 0.02
