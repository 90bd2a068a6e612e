"""All that is to be done between two networks: which stitches and comparisons, what cannot be, and what it costs."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from tqdm import tqdm

from src.core.errors import UserError
from src.cutting.selection import pairs_of_layers
from src.evaluation.identical import DATA, IDENTICAL, IMAGES, STEPS
from src.metrics import METRICS
from src.networks.presentation import NetworksOnDataset
from src.stitching import ControlSpec, CutNetworks, Geometry, StitchSpec, check_sizes
from src.stitching.controls import control_specs, possible_controls
from src.stitching.exclusions import SIZED
from src.stitching.keys import key_inputs, stitch_key
from src.stitching.network import pair_geometry
from src.stitching.targets import TARGETS, teachers_of
from src.studies.declared import Declared, Pair
from src.studies.estimate import (
    GPU_STEP,
    START,
    STEP,
    Costs,
    alike_seconds,
    gram_operations,
    own_bytes,
    own_seconds,
    paired_operations,
    shared_seconds,
)
from src.studies.jobs import Bundle, CompareSpec, Item, Settings
from src.studies.network_cache import CachedNetwork, NetworkCache
from src.training.loop import check_batch


class _Priced(NamedTuple):
    """A result that is to be made, the seconds that it takes for itself, and the bytes of its file."""

    item: Item
    seconds: float
    size: int


class PairWork:
    """What is to be done between two networks."""

    def __init__(
        self,
        pair: Pair,
        settings: Settings,
        on_data: NetworksOnDataset,
        cache: NetworkCache,
        left_out: Counter[str],
    ) -> None:
        self.pair, self.settings, self.on_data = pair, settings, on_data
        self.cache, self.left_out = cache, left_out
        scored = on_data
        if settings.evaluate_on:
            scored = on_data.elsewhere(settings.evaluate_on, size=settings.image_size)
        possible_controls(settings.controls, labelled=on_data.end_labelled, task=on_data.spec.task)
        self.sides: tuple[CachedNetwork, CachedNetwork] = cache.of(on_data, 0), cache.of(on_data, 1)
        (train, n_train), (val, n_val) = (
            cache.images(seen, split, settings.images) for seen, split in ((on_data, "train"), (scored, "val"))
        )
        self.about = key_inputs(on_data, [train, val], [seen.digest for seen in self.sides])
        step = GPU_STEP if cache.device.type == "cuda" else STEP
        self.costs = Costs(self.sides[0].seconds, self.sides[1].seconds, n_train, n_val, cache.products, step)
        self.items: list[_Priced] = []
        self.sewn: set[ControlSpec] = set()
        self.matched: dict[tuple[Any, ...], Any] = {}

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in self.items)

    def couples(self, table: Declared) -> list[tuple[str, str]]:
        """The couples of layers that a table asks for; raises UserError for unknown ones."""
        fronts, ends = self.layers(table)
        if table.is_comparison or table.says.layer_pairs == "all":
            return pairs_of_layers(fronts, ends, "all")
        if len(fronts) != len(ends):
            raise UserError(
                f"layer_pairs: zip needs as many front layers as end layers, not {len(fronts)} and {len(ends)}"
            )
        return pairs_of_layers(fronts, ends, "zip")

    def layers(self, table: Declared) -> tuple[list[str], list[str]]:
        says = table.says
        texts = (says.front_layers or says.layers, says.end_layers or says.layers)
        one, other = (seen.layers(text) for seen, text in zip(self.sides, texts, strict=True))
        return one, other

    def add_stitches(self, table: Declared, draft: tuple[list[StitchSpec], Counter[str]], steps: tqdm) -> None:
        """Add every stitch of a table; `steps` moves on by its combinations, left out or not."""
        specs, left_out = draft
        teachers = teachers_of(spec.target_type for spec in specs)
        self.on_data.require_for(teachers, batch_dependent=self.settings.batch_dependent)
        for spec in specs:
            if spec.epochs:
                check_batch(spec.batch_size, spec.trained_on(self.costs.train))
        for front, end in self.couples(table):
            for reason, count in left_out.items():
                self.left_out[reason] += count
            geometries: dict[tuple[bool, bool], Geometry | str] = {}
            for bare in specs:
                self._add(replace(bare, front_layer=front, end_layer=end), geometries)
                steps.update()
            steps.update(left_out.total())

    def _add(self, spec: StitchSpec, geometries: dict[tuple[bool, bool], Geometry | str]) -> None:
        form = spec.flatten, spec.resize
        try:
            if form not in geometries:
                outputs = self.sides[0].output(spec.front_layer), self.sides[1].output(spec.end_layer)
                geometries[form] = pair_geometry(*outputs, flatten=spec.flatten, resize=spec.resize)
            geometry = geometries[form]
            check_sizes({name: getattr(spec, name) for name in SIZED}, geometry)  # pyright: ignore[reportArgumentType]
            assert isinstance(geometry, Geometry)
            self._check_matched(spec)
        except UserError as error:
            self.left_out[str(error)] += 1
            return
        key, extras = stitch_key(spec, geometry, self.about), self.settings.extras
        name = stitch_key(spec, geometry, self.about | {"asked": extras}) if extras else key
        others = self._other_controls(spec, geometry)
        seconds = own_seconds(spec, self.costs, others, geometry if self.settings.similarity else None)
        if spec.inputs.steps:
            count, train = spec.trained_on(self.costs.train), self.about["images"][0]
            seconds += self._alike_seconds(spec.front_layer, count, spec.iri_steps, train)
        self.items.append(_Priced(Item(name, key, spec), seconds, own_bytes(spec, geometry, self.costs)))

    def _check_matched(self, spec: StitchSpec) -> None:
        """Raise UserError where the end network has nothing of what a target compares."""
        if not (spec.train_end_norm or any(TARGETS[stage.target].at for stage in spec.stages)):
            return
        asked = spec.end_layer, spec.target_type, spec.match_layers, spec.train_end_norm
        if asked not in self.matched:
            plain = StitchSpec(spec.end_layer, spec.end_layer)
            end = self.sides[1].checkpoint
            cuts = CutNetworks(end.network, end.network, [plain], self.on_data.sample, layouts=(end.layout, end.layout))
            try:
                if spec.train_end_norm:
                    cuts.end_norms(spec.end_layer)
                self.matched[asked] = [cuts.matched(spec, stage.target) for stage in spec.stages]
            except UserError as error:
                self.matched[asked] = error
        if isinstance(found := self.matched[asked], UserError):
            raise found

    def _other_controls(self, spec: StitchSpec, geometry: Geometry) -> int:
        """How many controls are sewn for a stitch that were not for one before it."""
        sewn = control_specs(geometry, spec, self.settings.controls, spec.trained_on(self.costs.train))
        before = len(self.sewn)
        self.sewn.update(one for some in sewn.values() for one in some)
        return len(self.sewn) - before

    def add_comparison(self, declared: Declared) -> None:
        (fronts, ends), table = self.layers(declared), declared.says
        if self.settings.evaluate_on:
            raise UserError("evaluate_on is for stitches; a comparison has its own data set")
        chosen = tuple(fronts), tuple(ends), tuple(table.metrics)
        how = table.view, table.group_at, table.split, table.save
        spec = CompareSpec(*chosen, *how, **self.inputs_of(table))
        about, count = self.surroundings(table.split)
        name, key = spec.names(**about)
        made = 0.0
        if spec.on == IDENTICAL:
            count, (images,) = min(count, spec.iri_images), about["images"]
            made = sum(self._alike_seconds(layer, count, spec.iri_steps, images) for layer in fronts)
        sides = zip(self.sides, (spec.front_layers, spec.end_layers), strict=True)
        features = sum(math.prod(seen.output(layer).shape) for seen, layers in sides for layer in layers)
        couples = len(fronts) * len(ends)
        cells = couples * len(table.metrics)
        seconds = count * (self.costs.front + self.costs.end) * (1 + 0.02 * cells)
        seconds += couples * paired_operations(spec.metrics, spec.view, count) / self.costs.products
        if any(METRICS[name].needs == "gram" for name in spec.metrics if name in METRICS):
            seconds += gram_operations(features, count) * min(1, (spec.group_at or count) / count) / self.costs.products
        size = 4000 + 100 * cells + 4 * features * count * spec.save
        self.items.append(_Priced(Item(name, key, spec), seconds + made, size))

    def inputs_of(self, table: Any) -> dict[str, Any]:
        """On what a table compares, as fields of its spec; raises UserError where what it says is of something else."""
        asked = {"iri_images": table.iri_images, "iri_steps": table.iri_steps}
        if table.on == DATA:
            for name, value in asked.items():
                if value is not None:
                    raise UserError(f'{name} is of on = "{IDENTICAL}"')
            return {}
        if table.save:
            raise UserError(f'on = "{table.on}" excludes save: what is kept are the activations of the images')
        usual = {"iri_images": IMAGES, "iri_steps": STEPS}
        return {"on": table.on} | {name: usual[name] if value is None else value for name, value in asked.items()}

    def _alike_seconds(self, layer: str, count: int, steps: int, images: str) -> float:
        """What inputs take that a layer cannot tell apart, which are made once for all results of a study."""
        first = self.cache.is_first("iri", self.about["weights"][0], layer, count, steps, images)
        return alike_seconds(self.costs, count, steps) if first else 0.0

    def surroundings(self, split: str) -> tuple[dict[str, Any], int]:
        """What decides a comparison of images of a split beside its spec, and how many images these are."""
        images, count = self.cache.images(self.on_data, split, self.settings.images)
        return self.about | {"images": [images]}, count

    def forget(self, known: set[str]) -> None:
        """Leave out what was declared before, by an earlier table or pair, and remember the rest."""
        self.items = [one for one in self.items if one.item.name not in known]
        self.items = list({one.item.name: one for one in self.items}.values())
        known.update(one.item.name for one in self.items)

    def bundles(self, limit: float) -> Iterator[Bundle]:
        """Cut the work into parts of about so many seconds: comparisons alone, stitches that train together in one.

        Stitches that differ in what they are trained on alone, and are held against each other, are never apart.
        """
        twins: dict[StitchSpec, list[_Priced]] = {}
        for timed in self.items:
            spec = timed.item.spec
            if isinstance(spec, CompareSpec):
                yield Bundle.of(self.pair, self.settings, [timed.item], START + timed.seconds)
            else:
                twins.setdefault(spec.twin, []).append(timed)
        groups: dict[tuple, list[list[_Priced]]] = {}
        for several in twins.values():
            groups.setdefault(tuple(_course(one) for one in several), []).append(several)
        held: list[Item] = []
        spent = START
        for same in groups.values():
            firsts = {_course(one): one.item.spec for one in same[0]}.values()
            shared = sum(shared_seconds(spec, self.costs) for spec in firsts if isinstance(spec, StitchSpec))
            begun = False  # whether what is shared is paid in the bundle that grows
            for several in same:
                seconds = sum(one.seconds for one in several)
                more = seconds if begun else shared + seconds
                if held and spent + more > limit:
                    yield Bundle.of(self.pair, self.settings, held, spent)
                    held, spent, more = [], START, shared + seconds
                held += [one.item for one in several]
                spent, begun = spent + more, True
        if held:
            yield Bundle.of(self.pair, self.settings, held, spent)


def _course(one: _Priced) -> tuple[Any, ...]:
    """What stitches agree in that train side by side."""
    spec = one.item.spec
    assert isinstance(spec, StitchSpec)
    return *spec.together, spec.inputs
