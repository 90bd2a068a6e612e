"""Times and memory of the suite against the plain way; `python -m benchmarks.run` prints the tables."""

import os

# settings for another machine's caches or instructions would slow down numpy, and with it one side more than the other
for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(name, None)
