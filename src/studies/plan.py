"""From a study file to bundles of work: which networks, layers and specs, what cannot be, and what it costs."""

import glob
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from src.core.errors import UserError
from src.core.records import ANY, NATURAL, Each, Several, check, read_json
from src.evaluation.identical import IMAGES
from src.metrics import METRICS
from src.networks.presentation import NetworksOnDataset
from src.networks.source_spec import Named
from src.stitching import ControlSpec, CutNetworks, Geometry, StitchSpec, check_sizes, usual_rate
from src.stitching.controls import control_specs, possible_controls
from src.stitching.exclusions import SIZED
from src.stitching.keys import key_inputs, stitch_key
from src.stitching.network import pair_geometry
from src.stitching.options import spec_of
from src.stitching.stitch_spec import IDENTICAL
from src.stitching.targets import TARGETS, teachers_of
from src.studies.estimate import START, Costs, gram_operations, own_bytes, own_seconds, shared_seconds
from src.studies.jobs import Bundle, CompareSpec, Item, Settings, from_record
from src.studies.network_cache import CachedNetwork, NetworkCache
from src.studies.schema import AXES, Study

MIN_BUNDLES = (
    8  # bundles at least, where the work is not too short for it: so that several processes have something to do
)
MAX_PLAN = 2_000_000_000  # bytes
_TABLE = {"bundles": Several(Each(ANY), 10_000_000), "left_out": Each(NATURAL), "size": NATURAL}
MOST = 200_000  # stitches of a table and a pair of networks
SHORT = 60.0  # seconds below which a bundle is not cut


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """All that a study is: its bundles, the bytes that their results will take, and {why: how many} were left out."""

    bundles: list[Bundle]
    left_out: dict[str, int]
    size: int = 0

    @property
    def names(self) -> list[str]:
        return [item.name for bundle in self.bundles for item in bundle.items]


class _Priced(NamedTuple):
    """A result that is to be made, the seconds that it takes for itself, and the bytes of its file."""

    item: Item
    seconds: float
    size: int


def plan_from_file(path: Path) -> StudyPlan:
    """A plan that is kept in a study's folder; raises OSError, or UserError for what is none."""
    record = read_json(path, MAX_PLAN)
    check(record, _TABLE, required=_TABLE)
    return StudyPlan([from_record(one) for one in record["bundles"]], record["left_out"], record["size"])


def make_plan(study: Study, on_message: Callable[[str], None] = lambda line: None) -> StudyPlan:
    """Every result that a study declares, once, in bundles; nothing is trained.

    What options or sizes of layers exclude is left out and counted. Raises UserError, with the line of the file, for
    networks and layers that there are not, and where all stitches of a table are left out.
    """
    says, cache = study.says, NetworkCache(on_message)
    left_out: Counter[str] = Counter()
    settings = Settings(
        study.name, says.dataset, says.evaluate_on, says.image_size, tuple(says.controls), says.ood, says.similarity
    )
    drafts = [draft_of(study, table, number) for number, table in enumerate(says.stitch)]
    works: list[_StitchWork] = []
    known: set[str] = set()
    for place, pair in pairs_of(study):
        try:
            on_data = cache.pair((Named(pair[0]), Named(pair[1])), says.dataset, says.image_size)
            work = _StitchWork(pair, settings, on_data, cache, left_out)
        except (UserError, OSError) as error:
            raise study.document.complaint(place, str(error)) from None
        for number, draft in enumerate(drafts):
            with _At(study, ("stitch", number)):
                work.add_stitches(says.stitch[number], draft)
        for number, table in enumerate(says.compare):
            with _At(study, ("compare", number)):
                work.add_comparison(table)
        work.forget(known)
        works.append(work)
    total = sum(work.seconds for work in works)
    limit = min(60 * says.minutes, max(SHORT, total / MIN_BUNDLES))
    bundles = [bundle for work in works for bundle in work.bundles(limit)]
    if not bundles:
        reasons = "; ".join(left_out) or "no pair of networks"
        raise study.document.complaint(("stitch",), f"nothing is left to do: {reasons}")
    return StudyPlan(bundles, dict(left_out), sum(one.size for work in works for one in work.items))


class _At:
    """Give an error of the block the line of a table."""

    def __init__(self, study: Study, place: tuple[str | int, ...]) -> None:
        self.study, self.place = study, place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UserError):
            raise self.study.document.complaint(self.place, str(error)) from None


def networks_of(study: Study) -> dict[str, int]:
    """The networks that a study names, patterns resolved, in order; with the position of what named each."""
    networks: dict[str, int] = {}
    for number, text in enumerate(study.says.networks):
        texts = [text]
        if "*" in text and not Path(text).exists():
            texts = sorted(glob.glob(text, recursive=True))
            if not texts:
                raise study.document.complaint(("networks", number), f"no file matches {text}")
        for one in texts:
            networks.setdefault(one, number)
    return networks


def texts_of(study: Study) -> list[str]:
    """Every network spec of a study, patterns resolved."""
    pairs = study.says.pairs if isinstance(study.says.pairs, list) else []
    return [*networks_of(study), *(text for pair in pairs for text in pair)]


def pairs_of(study: Study) -> Iterator[tuple[tuple[str | int, ...], tuple[str, str]]]:
    """Ordered pairs of networks, each with its place in the file."""
    if isinstance(study.says.pairs, list):
        yield from ((("pairs", number), pair) for number, pair in enumerate(study.says.pairs))
        return
    networks = networks_of(study)
    if study.says.pairs == "self":
        yield from ((("networks", number), (one, one)) for one, number in networks.items())
        return
    if len(networks) < 2:
        raise study.document.complaint(("networks",), 'pairs = "all" needs two networks or more; "self" needs one')
    for one, other in itertools.permutations(networks, 2):
        yield ("networks", max(networks[one], networks[other])), (one, other)


def draft_of(study: Study, table: Any, number: int) -> tuple[list[StitchSpec], Counter[str]]:
    """Every combination of the axes of a table, before layers are known; and why others were left out."""
    axes = {name: values for name in AXES if (values := getattr(table, name)) is not None}
    axes.setdefault("seed", study.says.seeds)
    if IDENTICAL in axes.get("train_on", ()):
        axes.setdefault("iri_images", [IMAGES])
    if (count := math.prod(map(len, axes.values()))) > MOST:
        raise study.document.complaint(("stitch", number), too_many(count, axes))
    specs, left_out = [], Counter()
    for chosen in itertools.product(*axes.values()):
        options = dict(zip(axes, chosen, strict=True))
        options.setdefault("lr", usual_rate(whiten=bool(options.get("whiten"))))
        try:
            specs.append(spec_of(options))
        except UserError as error:
            left_out[str(error)] += 1
    if not specs:
        raise study.document.complaint(("stitch", number), f"no stitch can be like that: {next(iter(left_out))}")
    return specs, left_out


def too_many(count: int, axes: Mapping[str, Sized]) -> str:
    """The line about a table of too many stitches: how many, and what multiplies."""
    factors = " x ".join(f"{len(values)} {name}" for name, values in axes.items() if len(values) > 1)
    return f"{count} stitches ({factors}), and {MOST} are the most; split the study, or leave values out"


class _StitchWork:
    """What is to be done between two networks."""

    def __init__(
        self,
        pair: tuple[str, str],
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
        (train, n_train), (val, n_val) = cache.images(on_data, "train"), cache.images(scored, "val")
        self.about = key_inputs(on_data, [train, val], [seen.digest for seen in self.sides])
        self.costs = Costs(self.sides[0].seconds, self.sides[1].seconds, n_train, n_val, cache.products)
        self.items: list[_Priced] = []
        self.sewn: set[ControlSpec] = set()
        self.matched: dict[tuple[Any, ...], Any] = {}

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in self.items)

    def layers(self, table: Any) -> tuple[list[str], list[str]]:
        texts = (table.front_layers or table.layers, table.end_layers or table.layers)
        one, other = (seen.layers(text) for seen, text in zip(self.sides, texts, strict=True))
        return one, other

    def add_stitches(self, table: Any, draft: tuple[list[StitchSpec], Counter[str]]) -> None:
        fronts, ends = self.layers(table)
        if table.layer_pairs == "zip" and len(fronts) != len(ends):
            raise UserError(
                f"layer_pairs: zip needs as many front layers as end layers, not {len(fronts)} and {len(ends)}"
            )
        couples = (
            list(zip(fronts, ends, strict=True)) if table.layer_pairs == "zip" else itertools.product(fronts, ends)
        )
        specs, left_out = draft
        pairs = {"couples of layers": range(len(fronts) if table.layer_pairs == "zip" else len(fronts) * len(ends))}
        if (count := len(pairs["couples of layers"]) * len(specs)) > MOST:
            raise UserError(too_many(count, pairs | {"combinations of options": specs}))
        self.on_data.require_for(teachers_of(spec.target_type for spec in specs))
        for couple in couples:
            for reason, count in left_out.items():
                self.left_out[reason] += count
            geometries: dict[tuple[bool, bool], Geometry | str] = {}
            for bare in specs:
                self._add(replace(bare, front_layer=couple[0], end_layer=couple[1]), geometries)

    def _add(self, spec: StitchSpec, geometries: dict[tuple[bool, bool], Geometry | str]) -> None:
        form = spec.flatten, spec.resize
        try:
            if form not in geometries:
                outputs = self.sides[0].output(spec.front_layer), self.sides[1].output(spec.end_layer)
                geometries[form] = pair_geometry(*outputs, flatten=spec.flatten, resize=spec.resize)
            geometry = geometries[form]
            assert isinstance(geometry, Geometry)
            check_sizes({name: getattr(spec, name) for name in SIZED}, geometry)
            self._check_matched(spec)
        except UserError as error:
            self.left_out[str(error)] += 1
            return
        key, extras = stitch_key(spec, geometry, self.about), self.settings.extras
        name = stitch_key(spec, geometry, self.about | {"asked": extras}) if extras else key
        others = self._other_controls(spec, geometry)
        seconds = own_seconds(spec, self.costs, others, geometry if self.settings.similarity else None)
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
                self.matched[asked] = [cuts.matched(spec, stage.target) for stage in spec.stages]
                if spec.train_end_norm:
                    cuts.end_norms(spec.end_layer)
            except UserError as error:
                self.matched[asked] = error
        if isinstance(found := self.matched[asked], UserError):
            raise found

    def _other_controls(self, spec: StitchSpec, geometry: Geometry) -> int:
        """How many controls are sewn for a stitch that were not for one before it."""
        sewn = control_specs(geometry, spec, self.settings.controls, self.costs.train)
        before = len(self.sewn)
        self.sewn.update(one for some in sewn.values() for one in some)
        return len(self.sewn) - before

    def add_comparison(self, table: Any) -> None:
        fronts, ends = self.layers(table)
        if self.settings.evaluate_on:
            raise UserError("evaluate_on is for stitches; a comparison has its own data set")
        spec = CompareSpec(tuple(fronts), tuple(ends), tuple(table.metrics), table.view, table.group_at, table.split)
        images, count = self.cache.images(self.on_data, table.split)
        key = spec.key(**self.about | {"images": [images]})
        cells = len(fronts) * len(ends) * len(table.metrics)
        seconds = count * (self.costs.front + self.costs.end) * (1 + 0.02 * cells)
        if any(METRICS[name].needs == "gram" for name in spec.metrics if name in METRICS):
            sides = zip(self.sides, (spec.front_layers, spec.end_layers), strict=True)
            features = sum(math.prod(seen.output(layer).shape) for seen, layers in sides for layer in layers)
            seconds += gram_operations(features, count) * min(1, (spec.group_at or count) / count) / self.costs.products
        self.items.append(_Priced(Item(key, key, spec), seconds, 4000 + 100 * cells))

    def forget(self, known: set[str]) -> None:
        """Leave out what was declared before, by an earlier table or pair, and remember the rest."""
        self.items = [one for one in self.items if one.item.name not in known]
        self.items = list({one.item.name: one for one in self.items}.values())
        known.update(one.item.name for one in self.items)

    def bundles(self, limit: float) -> Iterator[Bundle]:
        """Cut the work into parts of about so many seconds: comparisons alone, stitches that train together in one."""
        groups: dict[tuple, list[_Priced]] = {}
        for timed in self.items:
            spec = timed.item.spec
            if isinstance(spec, CompareSpec):
                yield Bundle.of(self.pair, self.settings, [timed.item], START + timed.seconds)
            else:
                groups.setdefault((*spec.together, spec.inputs), []).append(timed)
        held: list[Item] = []
        spent = START
        for same in groups.values():
            assert isinstance(same[0].item.spec, StitchSpec)
            shared = shared_seconds(same[0].item.spec, self.costs)
            spent += shared
            for timed in same:
                if held and spent + timed.seconds > limit:
                    yield Bundle.of(self.pair, self.settings, held, spent)
                    held, spent = [], START + shared
                held.append(timed.item)
                spent += timed.seconds
        if held:
            yield Bundle.of(self.pair, self.settings, held, spent)
