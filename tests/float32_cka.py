"""Linear CKA as the published scripts computed it: float32 sums over whole Gram matrices.

    OPENBLAS_CORETYPE=Haswell python tests/float32_cka.py x.npy y.npy

Activations are (images, features). The value depends on how many partial sums the processor's dot product keeps.
"""

import sys

import numpy as np


def centred_gram(path: str) -> np.ndarray:
    x = np.load(path)
    gram = x @ x.T
    means = gram.mean(axis=0, dtype=np.float64)
    means -= means.mean() / 2
    gram -= means[:, None]
    gram -= means[None, :]
    return gram.ravel()


def float32_cka(path_x: str, path_y: str) -> float:
    k, m = centred_gram(path_x), centred_gram(path_y)
    return float(k.dot(m) / (np.sqrt(k.dot(k)) * np.sqrt(m.dot(m))))


if __name__ == "__main__":
    print(float32_cka(*sys.argv[1:]))
