"""What is to be done between files of activations, or a file and a network: comparisons, never stitches."""

from collections import Counter
from typing import Any

from tqdm import tqdm

from src.core.errors import UserError
from src.dataset.feature_files import digest_of_features
from src.evaluation.identical import DATA
from src.networks.feature_networks import FeaturePair
from src.networks.source_spec import is_features
from src.stitching.keys import key_inputs
from src.studies.declared import Declared, Pair
from src.studies.estimate import Costs
from src.studies.jobs import Settings
from src.studies.network_cache import CachedNetwork, NetworkCache
from src.studies.pair_work import PairWork


def about_sides(sides: FeaturePair, images: str | None, digests: dict[str, str] | None = None) -> dict[str, Any]:
    """What decides a comparison of two sides beside its spec: what files hold, how it is read, weights and images.

    images: the digest of what the network among them sees. digests: of files, where somebody knows them already.
    """
    known = digests or {}
    files = [
        None if file is None else known.get(str(file.path)) or digest_of_features(file.path) for file in sides.files
    ]
    layouts = [getattr(network.network, "layouts", None) for network in sides.networks]
    of_network = key_inputs(sides.shown, [str(images)]) if sides.shown else {}
    return of_network | {"files": files, "layouts": layouts}


class FeatureWork(PairWork):
    """The same where one side or both are files, which are of all images of a split."""

    on_data: FeaturePair

    def __init__(
        self, pair: Pair, settings: Settings, on_data: FeaturePair, cache: NetworkCache, left_out: Counter[str]
    ) -> None:
        self.pair, self.settings, self.on_data = pair, settings, on_data
        self.cache, self.left_out = cache, left_out
        if settings.images is not None and on_data.shown:
            raise UserError(f"images excludes {self._file}, which is of all images of a split")
        self.sides = self._cached(0), self._cached(1)
        self.costs = Costs(self.sides[0].seconds, self.sides[1].seconds, 0, 0, cache.products)
        self.items, self.sewn, self.matched = [], set(), {}

    @property
    def _file(self) -> str:
        return next(text for text in self.pair if is_features(text))

    def _cached(self, number: int) -> CachedNetwork:
        return CachedNetwork(self.on_data.networks[number], self.on_data.sample)

    def add_stitches(self, table: Declared, draft: Any, steps: tqdm) -> None:
        raise UserError(f"{self._file} has no network that could be stitched; give this table pairs of its own")

    def inputs_of(self, table: Any) -> dict[str, Any]:
        if table.on != DATA:
            raise UserError(f'on = "{table.on}": {self._file} has no network that could be asked')
        return super().inputs_of(table)

    def surroundings(self, split: str) -> tuple[dict[str, Any], int]:
        images, count = None, None
        if self.on_data.shown:
            images, count = self.cache.images(self.on_data.shown, split, None)
        files = {str(file.path): self.cache.digest_of_file(file.path) for file in self.on_data.files if file}
        return about_sides(self.on_data, images, files), self.on_data.require_count(split, count)


def digest_of_images(split: Any) -> str | None:
    """The digest of what the network among two sides sees; None where both are files."""
    return split.inner.digest() if split.inner is not None else None
