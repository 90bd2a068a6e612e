"""Training images made fewer, or their labels wrong, by a seed: what a network learns of less, and of chance."""

import hashlib

import torch
from torch import Generator

from src.dataset.split import Split


def take_fraction(split: Split, fraction: float, *, seed: int) -> Split:
    """A fixed subset of a split: `fraction` (0 to 1) of each class, at least one image; in the split's own order.

    Where images have several labels, it is a plain random subset. Of one seed, a smaller fraction is a part of each
    larger one.
    """
    generator = _generator("fraction", seed)
    strata = split.spec.task.strata(split.labels).cpu()
    kept = []
    for stratum in strata.unique():
        members = (strata == stratum).nonzero().flatten()
        drawn = members[torch.randperm(len(members), generator=generator)]
        kept.append(drawn[: max(1, round(fraction * len(members)))])
    return split.take(torch.cat(kept).sort().values)


def hold_out(split: Split, share: float, *, seed: int) -> tuple[Split, Split]:
    """The split without a `share` (0 to 1) of its images, of each class alike, and these, chosen by a seed.

    Of a class of two images or more at least one is held out, and one stays.
    """
    strata = split.spec.task.strata(split.labels).cpu()
    generator, held = _generator("hold out", seed), []
    for stratum in strata.unique():
        members = (strata == stratum).nonzero().flatten()
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held.append(members[torch.randperm(len(members), generator=generator)][:count])
    out = torch.zeros(len(split), dtype=torch.bool)
    out[torch.cat(held)] = True
    return split.take((~out).nonzero().flatten()), split.take(out.nonzero().flatten())


def take_images(split: Split, count: int) -> Split:
    """A fixed subset of so many images, as nearly as many of each class; in the split's own order, all if it has fewer.

    A smaller one is a part of each larger one. Where images have several labels, it is a plain random subset.
    """
    if count >= len(split):
        return split
    generator = _generator("images", 0)
    strata = split.spec.task.strata(split.labels).cpu()
    turn = torch.empty_like(strata)  # of an image among those of its class, drawn at random
    for stratum in strata.unique():
        members = (strata == stratum).nonzero().flatten()
        turn[members[torch.randperm(len(members), generator=generator)]] = torch.arange(len(members))
    by_class = strata.argsort(stable=True)
    return split.take(by_class[turn[by_class].argsort(stable=True)][:count].sort().values)


def shuffle_labels(split: Split, share: float, *, seed: int) -> Split:
    """The split with the labels of a random `share` (0 to 1) of its images dealt out among these anew.

    Labels are moved and none is made, so that each class stays as frequent as it was, and some images get a label
    like their own (Zhang et al. 2017, section 2.1, draw each label on its own instead).
    """
    generator = _generator("shuffle", seed)
    chosen = torch.randperm(len(split), generator=generator)[: round(share * len(split))]
    labels = split.labels.cpu().clone()
    labels[chosen] = labels[chosen[torch.randperm(len(chosen), generator=generator)]]
    return split.relabelled(labels)


def _generator(purpose: str, seed: int) -> Generator:
    # of its own: the seed itself decides the order of the images, which must not go with the choice of them
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
