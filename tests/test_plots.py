"""The pictures show what they were given: checked on what was drawn (bars, lines, cells), not on pixels."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import prunelab as pl
from prunelab import plots


def bar_heights(figure):
    return [[bar.get_height() for bar in container] for container in figure.axes[0].containers]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


FIGURES = {
    "heatmap": lambda ax: plots.heatmap(torch.randn(4, 6), ax),
    "histogram": lambda ax: plots.histogram(torch.randn(50), {"local": 0.5}, ax),
    "masks": lambda ax: plots.masks(torch.randn(4, 3, 3, 3), ax=ax),
    "scores": lambda ax: plots.scores(torch.rand(8), 0.5, ax),
    "layer_sparsity": lambda ax: plots.layer_sparsity({"local": {"conv1": 0.5, "fc": 0.5}}, ax),
    "curves": lambda ax: plots.curves({"l1": ([0, 1], [0.9, 0.1])}, ax, levels={"chance": 0.1}),
    "bars": lambda ax: plots.bars({"add": 0.9, "read": 640}, ax, log=True),
    "comparison": lambda ax: plots.comparison({"dense": {"MACs": 4}, "small": {"MACs": 1}}, ax=ax),
    "dots": lambda ax: plots.dots({"l1": [0.9], "random": [0.1, 0.3]}, band=(0.1, 0.3), ax=ax, level=0.9),
    "ranking": lambda ax: plots.ranking({"l1": 0.9, "random": 0.3}, 0.1, ax=ax),
    "schedules": lambda ax: plots.schedules(["linear", "agp"], ax),
    "regularisation_path": lambda ax: plots.regularisation_path([1, 2], [[1, 1], [0, 0]], [2, 0], ax),
    "contours": lambda ax: plots.contours(lambda w: w.abs().sum(1), ax, paths={"step": [(1, 1), (1, 0)]}),
    "vectors": lambda ax: plots.vectors(torch.tensor([[1.0, 2], [0, 1]]), torch.tensor([True, False]), ax),
    "scatter": lambda ax: plots.scatter([1, 2], [1, 3], ax, equal=True),
    "front": lambda ax: plots.front({"l1": ([1, 2], [0.5, 0.9])}, [(1, 0.5), (2, 0.9)], ax),
    "network_sketch": lambda ax: plots.network_sketch([torch.ones(3, 2), torch.ones(2, 3)], ax),
}


@pytest.mark.parametrize("name", FIGURES)
def test_draws_on_a_new_figure_or_on_the_given_axes(name):
    new = FIGURES[name](None)
    assert new.get_size_inches()[0] == plots.WIDTH and new.dpi == plots.STYLE["figure.dpi"]
    assert plt.get_fignums() == []  # closed: a notebook shows it once
    figure, (left, right) = plots.panels(2)
    assert FIGURES[name](left) is figure
    assert left.has_data() and not right.has_data()
    figure.canvas.draw()  # nothing is left for drawing time to trip over


def test_the_style_does_not_leak():
    before = plt.rcParams["axes.spines.top"]
    plots.scores(torch.rand(4), 0.5)
    assert plt.rcParams["axes.spines.top"] == before


def test_heatmap_marks_exact_zeros_only():
    figure = plots.heatmap(torch.tensor([[0.0, -2.0, 1e-9]]))
    drawn = figure.axes[0].images[0]
    assert drawn.get_array().tolist() == [[-1.0, 2.0, pytest.approx(1e-9)]]  # below vmin = the faded colour
    assert drawn.norm.vmin == 0


def test_histogram_draws_each_cut_on_both_sides_in_the_colour_of_its_set():
    figure = plots.histogram({"a": torch.randn(99), "b": torch.randn(99)}, {"b": 0.25, "all": 0.5})
    lines = figure.axes[0].lines
    assert [line.get_xdata()[0] for line in lines] == [0.25, -0.25, 0.5, -0.5]
    assert [line.get_color() for line in lines] == [plots.ORANGE] * 2 + [plots.BLACK] * 2


def test_masks_lays_filters_side_by_side_and_fades_what_is_removed():
    weight = torch.arange(1.0, 2 * 3 * 2 * 2 + 1).reshape(2, 3, 2, 2)
    keep = torch.tensor([True, False])[:, None, None, None]  # broadcasts: filter 1 is removed
    ax = plots.masks(weight, keep).axes[0]
    cells = np.asarray(ax.collections[0].get_array().filled(np.nan)).reshape(8, 5)
    assert cells[0:2, 0:2].tolist() == [[1, 2], [3, 4]]  # filter 0, channel 0
    assert cells[3:5, 0:2].tolist() == [[5, 6], [7, 8]]  # channel 1 stands below it
    assert (cells[0:2, 3:5] == -1).all() and (cells[6:8, 3:5] == -1).all()  # filter 1 stands to the right
    assert np.isnan(cells[2]).all() and np.isnan(cells[:, 2]).all()  # the gaps
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # channel 0 on top
    assert ax.get_xticks().tolist() == [1, 4] and ax.get_yticks().tolist() == [1, 4, 7]  # kernels' centres
    assert ax.collections[0].norm.vmax == 24  # removed or not: pictures of one weight share their colours


def test_masks_fades_zeros_when_no_mask_is_given():
    weight = torch.ones(1, 1, 1, 2)
    weight[..., 0] = 0
    cells = plots.masks(weight).axes[0].collections[0].get_array()
    assert cells.ravel().tolist() == [-1, 1]


@pytest.mark.parametrize("largest", [0.0, 2.0])  # of a layer that is all zeros, too
def test_masks_tells_a_zero_that_stays_from_one_that_is_removed(largest):
    weight = torch.tensor([0.0, 0.0, 0.01, largest]).view(1, 1, 1, 4)
    weight[..., 2] *= largest  # a small weight, if there is a large one
    keep = torch.tensor([False, True, True, True]).view(1, 1, 1, 4)
    drawn = plots.masks(weight, keep).axes[0].collections[0]
    removed, zero, small, _ = drawn.to_rgba(drawn.get_array()).reshape(-1, 4)
    assert removed == pytest.approx(matplotlib.colors.to_rgba(plots.FADED))
    assert zero == pytest.approx(small, abs=0.05) and abs(zero - removed).max() > 0.5


def cells_of(ax, filters, channels, size):
    """What a picture of masks shows, as ``(filters, channels, size, size)``, without its gaps."""
    step = size + 1
    drawn = np.asarray(ax.collections[0].get_array().filled(np.nan))
    return np.array(
        [
            [drawn[i * step : i * step + size, j * step : j * step + size] for i in range(channels)]
            for j in range(filters)
        ]
    )


def test_granularity_shows_one_group_and_what_stays():
    weight = torch.arange(1.0, 3 * 2 * 4 + 1).reshape(3, 2, 2, 2)
    where = torch.arange(24).reshape(3, 8)  # by filter
    keep = torch.tensor([True, True, False])[:, None, None, None].expand_as(weight)
    left, right = plots.granularity(weight, where, keep, (1, 0, 1, 1)).axes
    assert (cells_of(left, 3, 2, 2) != -1).all((1, 2, 3)).tolist() == [False, True, False]
    assert (cells_of(left, 3, 2, 2)[[0, 2]] == -1).all()
    assert (cells_of(right, 3, 2, 2)[:2] == weight[:2].numpy()).all()
    assert (cells_of(right, 3, 2, 2)[2] == -1).all()
    assert left.get_title() == "one group, of 3" and "0.67" in right.get_title()


def test_granularity_draws_the_first_filters_and_channels_only():
    weight, where = torch.ones(4, 4, 1, 1), torch.arange(16).reshape(4, 4)
    left, _ = plots.granularity(weight, where, weight > 0, (1, 0, 0, 0), 2, 3).axes
    assert cells_of(left, 2, 3, 1).squeeze((2, 3)).tolist() == [[-1, -1, -1], [1, 1, 1]]


@pytest.mark.parametrize(("amount", "removed"), [(0, 0), (0.25, 1), (0.5, 2), (1, 4)])
def test_scores_marks_the_lowest(amount, removed):
    cut, kept = bar_heights(plots.scores(torch.tensor([0.3, 0.1, 0.4, 0.2]), amount))
    expected = torch.tensor([0.1, 0.2, 0.3, 0.4]).tolist()
    assert cut == expected[:removed] and kept == expected[removed:]


def test_contours_draw_where_a_criterion_is_equal():
    figure = plots.contours(lambda w: w.abs().sum(1), levels=[1], span=(-2, 2), paths={"a": [(1, 1), (1, 0)]})
    (line,) = figure.axes[0].collections[0].get_paths()
    np.testing.assert_allclose(np.abs(line.vertices).sum(1), 1, atol=1e-4)  # a diamond, and all of it:
    np.testing.assert_allclose(line.vertices.max(0), [1, 1], atol=0.03)
    np.testing.assert_allclose(line.vertices.min(0), [-1, -1], atol=0.03)
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[1, 1], [1, 0]]
    (line,) = plots.contours(lambda w: w[:, 0], levels=[1]).axes[0].collections[0].get_paths()
    np.testing.assert_allclose(line.vertices[:, 0], 1, atol=1e-6)  # the first weight is the one to the right


def test_vectors_start_at_zero_and_tell_removed_from_kept():
    filters = torch.tensor([[2.0, 1.0], [0.0, -1.0]])
    ax = plots.vectors(filters, torch.tensor([True, False])).axes[0]
    kept, removed = ax.lines[:2]
    assert kept.get_xydata().tolist() == [[0, 0], [2, 1]]
    assert removed.get_xydata().tolist() == [[0, 0], [0, -1]]
    assert (kept.get_color(), kept.get_linestyle()) == (plots.KEPT, "-")
    assert (removed.get_color(), removed.get_linestyle()) == (plots.REMOVED, "--")
    assert [text.get_text() for text in ax.texts] == ["0", "1"]


def test_scatter_numbers_its_dots_and_draws_where_both_are_equal():
    ax = plots.scatter(torch.tensor([1.0, 3.0]), [2, 5], equal=True).axes[0]
    dots, diagonal = ax.lines
    assert dots.get_xydata().tolist() == [[1, 2], [3, 5]]
    assert diagonal.get_xydata().tolist() == [[1, 1], [5, 5]]
    assert [text.get_text() for text in ax.texts] == ["0", "1"]


def test_scatter_puts_no_number_on_another_dot():
    ax = plots.scatter([0.0, 0.015, 1.0, 1.0], [0.0, 0.03, 1.0, 1.0]).axes[0]
    assert [text.get_text() for text in ax.texts] == ["1", "2"]  # 3 lies on 2


def test_layer_sparsity_draws_one_bar_for_each_layer_and_method():
    figure = plots.layer_sparsity({"local": {"a": 0.5, "b": 0.5}, "global": {"a": 0.2, "b": 0.8}})
    assert bar_heights(figure) == [[0.5, 0.5], [0.2, 0.8]]
    assert legend(figure.axes[0]) == ["local", "global"]


def test_curves_draw_the_mean_and_the_range_of_the_seeds():
    runs = [[0.9, 0.2], [0.9, 0.4], [0.9, 0.3]]
    ax = plots.curves({"l1": ([0, 0.5], [0.9, 0.7]), "random": ([0, 0.5], torch.tensor(runs))}).axes[0]
    assert ax.lines[1].get_ydata() == pytest.approx([0.9, 0.3])
    band = ax.collections[0].get_paths()[0].vertices
    assert band[band[:, 0] == 0.5][:, 1].min() == pytest.approx(0.2)
    assert band[band[:, 0] == 0.5][:, 1].max() == pytest.approx(0.4)
    assert legend(ax) == ["l1", "random (mean and range, 3 seeds)"]


def test_bars_name_their_values():
    ax = plots.bars({"add": 0.9, "read": 640}, log=True).axes[0]
    assert [bar.get_width() for bar in ax.patches] == [0.9, 640] and ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.texts] == ["0.9", "640"]


@pytest.mark.parametrize(
    ("values", "labels"),
    [((0.8, 0.94, 1), ["0.80", "0.94", "1.00"]), ((3, 12), ["3", "12"]), ((2e6, 0.5), ["2e+06", "0.5"])],
)
def test_bars_on_one_scale_have_equally_many_decimals(values, labels):
    ax = plots.bars(dict(zip("abc", values))).axes[0]
    assert [text.get_text() for text in ax.texts] == labels


def test_comparison_draws_ratios_to_the_first_row():
    rows = {"dense": {"MACs": 40, "seconds": 2.0}, "small": {"seconds": 1.0, "MACs": 10, "more": 1}}
    figure = plots.comparison(rows, {"small": {"seconds": (0.5, 1.5)}})
    assert bar_heights(figure) == [[1, 1], [0.25, 0.5]]
    segment = figure.axes[0].collections[-1].get_segments()[0]
    assert segment[:, 1].tolist() == [0.25, 0.75]  # quartiles are ratios too
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.25", "0.50"]


def test_comparison_leaves_out_what_has_no_ratio():
    rows = {"dense": {"sparsity": 0.0, "accuracy": 0.9}, "sparse": {"sparsity": 0.5, "accuracy": 0.9}}
    ticks = [label.get_text() for label in plots.comparison(rows).axes[0].get_xticklabels()]
    assert ticks == ["accuracy"]


def test_legends_stand_above_the_data_and_the_title_above_them():
    long = "filters removed, those with the smallest L1 norm first"
    figure = plots.curves({long: ([0, 1], [0, 1]), long + " ": ([0, 1], [1, 0])}, title="title")
    figure.canvas.draw()
    ax = figure.axes[0]
    box = ax.get_legend().get_window_extent()
    assert box.y0 >= ax.bbox.y1 - 1
    assert ax.title.get_window_extent().y0 >= box.y1 - 4  # less the legend's own margin
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_many_short_names_share_the_rows_of_a_legend():
    figure = plots.curves({f"stage{j}.2.conv1": ([0, 1], [0, j]) for j in range(7)}, title="title")
    figure.canvas.draw()
    box = figure.axes[0].get_legend().get_window_extent()
    assert box.height < 0.2 * figure.bbox.height  # seven rows would take a third
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_front_draws_a_staircase_as_far_as_the_dearest_network():
    ax = plots.front({"l1": ([1, 3], [0.5, 0.8]), "dense": ([4], [0.7])}, [(1, 0.5), (3, 0.8)]).axes[0]
    (stairs,) = ax.lines
    assert stairs.get_xydata().tolist() == [[1, 0.5], [3, 0.8], [4, 0.8]]
    assert stairs.get_drawstyle() == "steps-post", "a budget of 2 buys what costs 1"
    assert legend(ax) == ["l1", "dense", "best for this budget"]
    assert [points.get_offsets().tolist() for points in ax.collections] == [[[1, 0.5], [3, 0.8]], [[4, 0.7]]]


def test_speed_draws_a_panel_for_each_batch_size_relative_to_dense():
    def row(method, sparsity, theory, low, middle, high):
        quartiles = {"lower": low, "median": middle, "upper": high}
        twice = {key: 2 * seconds for key, seconds in quartiles.items()}
        latency = {"1": quartiles, "64": twice if method == "dense" else quartiles}
        return {"method": method, "sparsity": sparsity, "theory": theory, "latency": latency}

    rows = [row("dense", 0, 1, 9, 10, 11), row("CSR", 0.5, 0.5, 20, 30, 50), row("CSR", 0.9, 0.1, 7, 8, 10)]
    rows.append(row("pruned", 0.5, 0.4, 5, 5, 5))
    figure = plots.speed(rows)
    assert [ax.get_title() for ax in figure.axes] == ["batch size 1", "batch size 64"]
    for ax, reference in zip(figure.axes, (10, 20), strict=True):
        csr, pruned = ax.containers
        np.testing.assert_allclose(csr.lines[0].get_xydata(), [[0.5, 30 / reference], [0.9, 8 / reference]])
        segments = [bar[:, 1] for bar in csr.lines[2][0].get_segments()]
        np.testing.assert_allclose(np.array(segments) * reference, [[20, 50], [7, 10]])
        np.testing.assert_allclose(pruned.lines[0].get_ydata(), [5 / reference])
        assert ax.get_yscale() == "log"
        assert any(list(line.get_ydata()) == [1, 1] for line in ax.lines), "the dense network"
        (theory,) = [line for line in ax.lines if line.get_label() == "theory, CSR"]
        assert theory.get_xydata().tolist() == [[0.5, 0.5], [0.9, 0.1]]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"CSR", "theory, CSR", "pruned"}
    figure.canvas.draw()


def test_history_draws_what_was_recorded():
    figure = plots.history([{"epoch": 1, "loss": 2.0, "train_accuracy": 0.5}, {"epoch": 2, "loss": 1.0}])
    left, right = figure.axes
    assert left.lines[0].get_ydata().tolist() == [2, 1]
    assert legend(right) == ["training"]  # no validation accuracy, no line for it


def test_dots_draw_mean_and_range_with_a_gap_between_families():
    rows = {"l1": [0.9], "random": [0.1, 0.6, 0.2], "snip": [0.8]}
    ax = plots.dots(rows, {"l1": "norms", "random": "norms", "snip": "gradient"}, band=(0.1, 0.6)).axes[0]
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines]
    assert dots == [(0.9, 0), (pytest.approx(0.3), 1), (0.8, 3)]
    assert ax.collections[1].get_segments()[0][:, 0].tolist() == [0.1, 0.6]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(rows)
    assert len({line.get_marker() for line in ax.lines}) == 2  # one for each family
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top


def test_ranking_sorts_and_draws_bars_that_overlap_when_methods_do_not_differ():
    families = {"l1": "norms", "snip": "gradient", "l2": "norms"}
    values, margin = {"l1": 2.0, "snip": 1.0, "l2": 2.4}, 0.5
    ax = plots.ranking(values, margin, families, band=(1.75, 2.25), lowest_first=True).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["snip", "l1", "l2"]
    bars = [bar.tolist() for collection in ax.collections for bar in collection.get_segments()]
    assert sorted(bars) == [[[v - 0.25, p], [v + 0.25, p]] for p, v in enumerate((1.0, 2.0, 2.4))]
    assert legend(ax) == ["norms", "gradient"] and ax.get_ylim()[0] > ax.get_ylim()[1]
    shaded = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert (shaded.x0, shaded.x1) == (pytest.approx(1.75), pytest.approx(2.25))
    best_first = plots.ranking(values, margin).axes[0]
    assert [label.get_text() for label in best_first.get_yticklabels()] == ["l2", "l1", "snip"]


def test_beside_random_draws_both_scopes_with_the_range_of_the_random_draws():
    def rows(*runs):  # three amounts; the accuracies that count are at 0.2 (local) and 0.3 (global)
        return [[0, local, overall] for local, overall in runs]

    measured = {"random": rows((0.1, 0.2), (0.4, 0.3)), "l1": rows((0.8, 0.7)), "l2": rows((0.9, 0.6))}
    result = {
        "amounts": [0.1, 0.2, 0.3],
        "dense": 0.95,
        "accuracy": {"local": measured, "global": measured},
    }
    figure = plots.beside_random(result, ["l2", "l1"])
    assert [ax.get_title() for ax in figure.axes] == ["local, amount 0.2", "global, amount 0.3"]
    for ax, band, means in zip(figure.axes, ((0.1, 0.4), (0.2, 0.3)), ([0.9, 0.8], [0.6, 0.7]), strict=True):
        assert [line.get_xdata()[0] for line in ax.lines[:2]] == means  # in the order asked for
        shaded = ax.patches[0]
        assert (shaded.get_x(), shaded.get_x() + shaded.get_width()) == pytest.approx(band)
        assert ax.lines[2].get_xdata()[0] == 0.95
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["l2", "l1"]
    with pytest.raises(ValueError, match="names: 'l3': did you mean 'l"):
        plots.beside_random(result, ["l3"])


def test_schedules_draw_all_that_are_registered_each_in_its_own_way():
    ax = plots.schedules().axes[0]
    assert legend(ax) == [method.name.replace("_", " ") for method in pl.methods("schedule")]
    drawn = dict(zip(legend(ax), ax.lines, strict=True))
    at = {name: line.get_ydata()[np.searchsorted(line.get_xdata(), 0.5)] for name, line in drawn.items()}
    assert at["linear"] == 0.5 and at["agp"] == 0.875 and at["cosine"] == pytest.approx(0.5)
    assert at["iterative"] == 0.6  # the third of five steps begins at 0.4
    ends = {name: line.get_ydata()[-1] for name, line in drawn.items()}
    assert ends.pop("dense sparse dense") == 0 and set(ends.values()) == {1}
    assert len({(line.get_color(), str(line.get_linestyle())) for line in ax.lines}) == len(ax.lines)


def test_schedules_draw_a_function_of_ones_own():
    line = plots.schedules([lambda t: t**2]).axes[0].lines[0]
    assert line.get_ydata()[1000] == 0.25


def test_regularisation_path_colours_what_matters():
    paths = [[3.0, 0.5, -1.0], [1.0, 0.0, -0.5], [0.0, 0.0, 0.0]]
    ax = plots.regularisation_path([0.1, 1.0, 10.0], paths, truth=[3, 0, -2]).axes[0]
    first, level, false, third, other_level = ax.lines[:5]
    assert first.get_ydata().tolist() == [3, 1, 0] and third.get_ydata().tolist() == [-1, -0.5, 0]
    assert level.get_ydata()[0] == 3 and other_level.get_ydata()[0] == -2  # the true values
    assert false.get_color() == "grey" and "grey" not in (first.get_color(), third.get_color())
    assert [text.get_text() for text in ax.texts] == ["0", "2"] and ax.get_xscale() == "log"
    assert legend(ax) == ["variable 0", "true coefficient is zero", "variable 2"]


def test_support_recovery_draws_true_and_false_groups_and_what_is_exact():
    recovery = {
        "L1": {"true_found": [0, 1], "false_found": [0, 0.5], "exact": [0, 0]},
        "group lasso": {"true_found": [0, 1], "false_found": [0, 0.1], "exact": [0, 0.9]},
    }
    figure = plots.support_recovery([1, 0.1], recovery)
    drawn = {ax.get_title(): [line.get_ydata().tolist() for line in ax.lines] for ax in figure.axes}
    assert drawn == {
        "true groups found": [[0, 1], [0, 1]],
        "false groups found": [[0, 0.5], [0, 0.1]],
        "all right": [[0, 0], [0, 0.9]],
    }
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["L1", "group lasso"]


def test_network_sketch_removes_edges_and_the_units_that_lost_them_all():
    first, second = torch.ones(3, 2), torch.ones(2, 3)
    first[0] = 0  # unit 0 hears nothing: its two edges onwards go too
    second[1, 1] = 0  # one edge alone
    ax = plots.network_sketch([first, second]).axes[0]
    solid = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert len(ax.lines) == 12 and len(solid) == 12 - 2 - 2 - 1
    hollow = [units for units in ax.collections if units.get_facecolor()[:, :3].sum() == 3]
    assert sum(len(units.get_offsets()) for units in hollow) == 1


def test_coupling_strikes_one_row_through_both_layers():
    ax = plots.coupling(filters=4, channels=3, next_filters=5, removed=1).axes[0]
    faded = [patch for patch in ax.patches if patch.get_linestyle() == "--"]
    assert len(faded) == 3 + 1 + 5  # the filter's kernels, its feature map, a kernel of each next filter
    assert {patch.get_y() for patch in faded} == {-1}


def test_stations_stand_in_order_with_their_names_below():
    ax = plots.stations({"filter": ["norms", "correlation"], "loss": []}, back="gradient").axes[0]
    texts = {text.get_text(): text.xyann for text in ax.texts if text.get_text()}
    assert texts["filter"][0] == texts["norms\ncorrelation"][0] == 0 and texts["loss"][0] == 1
    assert texts["norms\ncorrelation"][1] < texts["filter"][1] < texts["gradient"][1]
    arrows = [text for text in ax.texts if text.arrow_patch is not None]
    assert [arrow.xy[0] > arrow.xyann[0] for arrow in arrows] == [True, False]  # onwards, and back


def test_feature_maps_stand_in_columns_and_show_exact_zeros():
    maps = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2).float()  # one zero, in picture 0, filter 0
    figure = plots.feature_maps(maps, ["a", "b", "c"])
    ax = figure.axes[0]
    drawn = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert drawn[0:2, 0:2].tolist() == [[-1, 1], [2, 3]]  # below vmin = the faded colour
    assert drawn[0:2, 3:5].tolist() == [[4, 5], [6, 7]]  # filter 1 stands to the right
    assert drawn[3:5, 0:2].tolist() == [[12, 13], [14, 15]]  # picture 1 stands below
    assert np.isnan(drawn[2]).all() and np.isnan(drawn[:, 2]).all()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]


def test_curves_name_a_level_at_the_end_where_no_line_is():
    ax = plots.curves({"a": ([0, 1], [1.0, 0.2])}, levels={"dense": 1.0, "chance": 0.1}).axes[0]
    assert {text.get_text(): text.get_ha() for text in ax.texts} == {"dense": "right", "chance": "left"}


@pytest.mark.parametrize(
    "drawn",
    [lambda: plots.heatmap(torch.zeros(2, 3)), lambda: plots.feature_maps(torch.zeros(1, 1, 2, 2), ["a"])],
)
def test_what_is_all_zeros_is_faded(drawn):
    image = drawn().axes[0].images[0]
    assert image.to_rgba(np.array([[-1.0]]))[0, 0].tolist() == list(matplotlib.colors.to_rgba(plots.FADED))


def test_pictures_scales_bytes_and_names_classes():
    images = torch.full((3, 3, 4, 4), 51, dtype=torch.uint8)
    axes = plots.pictures(images, torch.tensor([1, 0, 1]), ["cat", "dog"], columns=2).axes
    assert [ax.get_title() for ax in axes] == ["dog", "cat", "dog", ""]
    assert axes[0].images[0].get_array().max() == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.heatmap(torch.zeros(3)), r"weights must have shape \(out, in\), got \(3,\)"),
        (lambda: plots.masks(torch.zeros(3, 3)), r"weight must have shape \(filters.*got \(3, 3\)"),
        (
            lambda: plots.masks(torch.zeros(4, 2, 3, 3), torch.ones(5, 1, 1, 1)),
            r"keep of shape \(5, 1, 1, 1\)",
        ),
        (lambda: plots.contours(lambda w: w.sum(1)[:7]), "values returned 7 numbers for 40401 points"),
        (lambda: plots.vectors(torch.zeros(3, 3), torch.ones(3)), r"filters of shape \(3, 3\)"),
        (lambda: plots.vectors(torch.zeros(3, 2), torch.ones(2)), r"keep of shape \(2,\)"),
        (lambda: plots.scatter([1, 2], [1]), "x has 2 numbers, y has 1"),
        (lambda: plots.beside_random({"accuracy": {"local": {}}}, []), "names is empty"),
        (lambda: plots.stations({}), "places is empty"),
        (lambda: plots.feature_maps(torch.zeros(2, 4, 4), []), r"maps must have shape \(pictures"),
        (lambda: plots.feature_maps(torch.zeros(1, 2, 4, 4), ["a"]), "names: 1 for 2 filters"),
        (lambda: plots.histogram({}), "weights is empty"),
        (lambda: plots.histogram(torch.zeros(0)), "is empty"),
        (
            lambda: plots.granularity(*[torch.ones(2, 1, 1, 1)] * 3, (1, 0, 0, 0), filters=1),
            r"member=\(1, 0, 0, 0\) lies outside what is drawn, \(1, 1, 1, 1\)",
        ),
        (
            lambda: plots.granularity(torch.ones(1, 1, 1, 2), torch.tensor([[0, 1]]), torch.ones(1, 1, 1, 1)),
            r"keep of shape \(1, 1, 1, 1\) does not fit weight \(1, 1, 1, 2\)",
        ),
        (lambda: plots.scores(torch.rand(4), 50), "amount must lie in 0..1, got 50"),
        (lambda: plots.layer_sparsity({"a": {"x": 0.1}, "b": {"y": 0.1}}), r"methods\['b'\] has the layers"),
        (lambda: plots.curves({"l1": ([0, 1], [0.5])}), r"series\['l1'\]: y of shape \(1,\)"),
        (lambda: plots.curves({"l1": ([0, 1], torch.zeros(2, 2, 2))}), r"y of shape .*\[?2, 2, 2"),
        (lambda: plots.comparison({"a": {"x": 1}, "b": {}}), r"rows\['b'\] lacks \['x'\]"),
        (lambda: plots.comparison({"a": {"x": 0}}), "holds no measure but zeros"),
        (lambda: plots.dots({}), "rows is empty"),
        (lambda: plots.dots({"l1": [1], "l2": [1]}, {"l1": "norms"}), r"groups lacks \['l2'\]"),
        (lambda: plots.ranking({}, 1.0), "values is empty"),
        (lambda: plots.ranking({"l1": 1.0}, 1.0, {"l2": "norms"}), r"groups lacks \['l1'\]"),
        (lambda: plots.schedules(["agb"]), "schedule='agb': did you mean 'agp'"),
        (lambda: plots.schedules([]), "names is empty"),
        (lambda: plots.regularisation_path([1, 2, 3], [[1], [0]]), r"\(2, 1\) do not fit 3 strengths"),
        (lambda: plots.regularisation_path([1], [[1, 2]], [1]), "truth of 1 variables does not fit"),
        (lambda: plots.support_recovery([1], {"l1": {"exact": [1]}}), r"recovery\['l1'\] lacks 'true_found'"),
        (
            lambda: plots.support_recovery([1], {"l1": {"true_found": [1, 0]}}),
            r"\['true_found'\] has 2 values for 1 shares",
        ),
        (lambda: plots.front({}, []), "series is empty"),
        (lambda: plots.front({"l1": ([1], [0.5])}, []), "front is empty"),
        (
            lambda: plots.front({"l1": ([1], [0.5, 0.6])}, [(1, 0.5)]),
            r"series\['l1'\]: 1 costs, 2 accuracies",
        ),
        (lambda: plots.speed([]), r"rows must hold one of method 'dense' and others .* got \[\]"),
        (lambda: plots.network_sketch([torch.ones(3, 2), torch.ones(2, 4)]), r"weights\[0\] gives 3 outputs"),
        (lambda: plots.coupling(filters=3, removed=3), r"removed must be one of the filters 0..2, got 3"),
        (lambda: plots.pictures(torch.randn(2, 3, 8, 8) * 9), "must lie in 0..1"),
        (lambda: plots.pictures(torch.rand(2, 1, 8, 8)), r"got \(2, 1, 8, 8\)"),
        (lambda: plots.pictures(torch.rand(2, 3, 8, 8), [1]), "labels: 1 for 2 images"),
        (lambda: plots.history([]), "epochs is empty"),
    ],
)
def test_wrong_shapes_are_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
