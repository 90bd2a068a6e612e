"""What is decided before any data: refusals, remedies, memory, and which side is cheaper."""

import pytest

from src.metrics.engine.plan import GridPlan, group_sizes, plan_cell, plan_grid, require_possible


def planned(names, n, shape_x, shape_y, memory=None, **options) -> GridPlan:
    plan = plan_grid(names, n_images=n, shapes_x=[shape_x], shapes_y=[shape_y], **options)
    require_possible(plan, memory)
    return plan


def test_advice_about_few_images_can_be_followed():
    def make(n, shape, **options):
        return planned(["svcca"], n, shape, shape, view="images", **options)

    with pytest.raises(ValueError, match=r"svcca would keep 16.1 GB .*--memory 17, or use --view channels\Z"):
        make(10_000, (64, 56, 56), memory=8e9)
    assert make(100, (64, 32, 32), memory=8e9)
    assert make(100, (64, 32, 32), group=50).cells[0, 0].source == {"svcca": "row_space"}  # of all images
    with pytest.raises(ValueError, match=r"svcca would keep 16.1 GB .*--memory 17, or use --view channels\Z"):
        make(10_000, (64, 56, 56), group=50, memory=8e9)


@pytest.mark.parametrize(("images", "stored"), [(40, True), (600, False)])
def test_the_cheaper_side_is_chosen(images, stored):
    assert plan_cell(["cka"], None, images, (5, 2, 2), (5, 2, 2), None).source["cka"] == (
        "rows" if stored else "moments"
    )


@pytest.mark.parametrize(
    ("n", "group", "sizes"),
    [(10, None, [10]), (10, 20, [10]), (10, 5, [5, 5]), (11, 5, [5, 6]), (13, 5, [5, 5, 3]), (12, 5, [5, 7])],
)
def test_group_sizes(n, group, sizes):
    assert group_sizes(n, group) == sizes
    with pytest.raises(ValueError, match="--group-at"):
        group_sizes(10, 1)


def test_refusals_before_any_work():
    def make(name, shape_x=(5, 3, 3), shape_y=(5, 3, 3), n=120, view=None):
        return planned([name], n, shape_x, shape_y, view=view)

    with pytest.raises(ValueError, match=r"unknown metric ckka; close: cka; known are .*cka_rbf"):
        make("ckka")
    with pytest.raises(ValueError, match=r"cca of 45 features needs at least 47 images, got 46.*--view channels"):
        make("cca", n=46)
    assert make("cca", n=47) and make("cca", n=46, view="channels") and make("cka", n=46)
    with pytest.raises(ValueError, match=r"l2 needs activations of one shape, got \(5, 3, 3\) and \(5, 2, 2\)"):
        make("l2", shape_y=(5, 2, 2))
    with pytest.raises(ValueError, match=r"cca of 45 features needs at least 47 images, got 46.*use more images\Z"):
        make("cca", shape_y=(5, 2, 2), n=46)  # channels have no equal positions
    with pytest.raises(ValueError, match=r"cca by channels needs equal positions, got \S+ 3, 3\) and \S+ 2, 2\)\Z"):
        make("cca", shape_y=(5, 2, 2), n=46, view="channels")
    with pytest.raises(ValueError, match=r"procrustes by channels needs .*--view images"):
        make("procrustes", shape_y=(5, 2, 2), view="channels")
    for shape, n in (((16, 30, 30), 20_000), ((64, 30, 30), 12_000)):
        with pytest.raises(ValueError, match=r"GB of sums of products; use --view channels"):
            make("procrustes", shape, shape, n)
    assert make("procrustes", (16, 30, 30), (16, 30, 30))
    assert make("cka", (16, 30, 30), (16, 15, 15), n=10)


def test_what_would_keep_too_much_says_which_group_fits():
    def comparison(names: list[str], **options) -> GridPlan:
        return planned(names, 19_962, (508, 14, 14), (508, 14, 14), **options)

    with pytest.raises(ValueError, match=r"cka would keep 15\.9 GB .* --group-at 10043, or .* --memory 16$"):
        comparison(["cka", "l2"], memory=8e9)
    comparison(["cka", "l2"], memory=1e8, group=100)
    comparison(["l2", "corr"], memory=1)


@pytest.mark.parametrize("images", [7, 100, 149, 151, 199, 1000])
def test_the_group_that_is_named_is_allowed(images: int):
    def comparison(group: int | None) -> GridPlan:
        return planned(["cka_rbf"], 1000, (5,), (7,), group=group, memory=4 * 12 * images)

    if images == 1000:
        comparison(None)
        return
    with pytest.raises(ValueError, match="--group-at") as refused:
        comparison(None)
    comparison(int(str(refused.value).split("--group-at ")[1].split(",")[0]))


def test_the_need_is_counted():
    def need(names, n, shape_x, shape_y, **options) -> int:
        return plan_grid(names, n_images=n, shapes_x=[shape_x], shapes_y=[shape_y], **options).bytes()

    assert need(["cka"], 100, (30, 2, 2), (50,)) == 4 * 100 * (120 + 50) + 8 * 2 * 100**2
    assert need(["cka"], 100, (3, 2, 2), (5,), group=10) == 4 * 10 * 17 + 8 * 2 * 10**2
    assert need(["cka"], 100, (3,), (5,)) == 8 * (9 + 15 + 25)
    assert need(["l2"], 100, (3,), (3,)) == 8 * 12
    assert need(["l2"], 100, (3,), (5,)) == 0
    assert need(["lr"], 100, (3, 2, 2), (5, 2, 2), view="channels") == 8 * (9 + 15 + 25)
    wide = plan_grid(["procrustes"], n_images=20, shapes_x=[(4000,), (3,)], shapes_y=[(4000,)])
    assert wide.bytes() < 4 * 20 * 8003 + 100_000


def test_layers_share_their_own_sums():
    plan = plan_grid(["lr"], n_images=100, shapes_x=[(3,), (4,)], shapes_y=[(5,), (6,)])
    assert plan.bytes() == 8 * (9 + 16 + 25 + 36 + 7 * 11)


def test_a_metric_that_takes_much_itself_names_the_group_that_fits():
    cell = plan_grid(["rsa", "cka"], n_images=10_000, shapes_x=[(5,)], shapes_y=[(7,)], memory=1e9).cells[0, 0]
    assert "rsa of 10000 images would take 2.0 GB beside the activations" in cell.unavailable["rsa"]
    assert cell.unavailable["rsa"].endswith("--memory 2") and "cka" not in cell.unavailable
    group = int(cell.unavailable["rsa"].split("--group-at ")[1].split(",")[0])
    allowed = plan_grid(["rsa"], n_images=10_000, shapes_x=[(5,)], shapes_y=[(7,)], memory=1e9, group=group)
    assert not allowed.cells[0, 0].unavailable and 4000 < group < 7500
