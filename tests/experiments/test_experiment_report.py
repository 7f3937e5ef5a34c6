"""Statistics and report of the experiments, on finished runs made by hand."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("monai", reason='experiments need pip install "rwkernels[experiments]"')
pytest.importorskip("scipy", reason='experiments need pip install "rwkernels[experiments]"')
pytest.importorskip("matplotlib", reason='experiments need pip install "rwkernels[experiments]"')
pytest.importorskip("filelock", reason='experiments need pip install "rwkernels[experiments]"')

from experiment_cases import BOUNDARY, DICE, HEARTS, RRW, experiment, record

from rwkernels import cli, pages
from rwkernels.experiments import configuration, records, report, scores
from rwkernels.experiments.records import Record

INF, NAN = math.inf, math.nan


def by_key(*given: Record) -> dict[str, Record]:
    return {each.run.key: each for each in given}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # All six differences have one sign: 2 of 2^6 patterns are as extreme.
        ([3.0, 5.0, 4.0, 6.0, 7.0, 9.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2 / 64),
        # Differences 1, 2, -3: their sum is 0, and no pattern is less extreme.
        ([1.0, 2.0, 0.0], [0.0, 0.0, 3.0], 1.0),
        # Differences 3, -1: sums of the patterns are 2, 4, -4, -2; all are at least 2 away from 0.
        ([3.0, 0.0], [0.0, 1.0], 1.0),
        # Differences 4, 1, -1: 4 beside +-6, +-4 (twice), +-2: 6 of 8 patterns.
        ([4.0, 1.0, 0.0], [0.0, 0.0, 1.0], 6 / 8),
    ],
)
def test_the_paired_permutation_test_gives_what_counting_sign_patterns_by_hand_gives(
    first: list[float], second: list[float], expected: float
) -> None:
    assert scores.paired_p(first, second) == pytest.approx(expected)
    assert scores.paired_p(second, first) == pytest.approx(expected)


def test_ten_thousand_resamples_come_close_to_all_sign_patterns_and_are_the_same_each_time() -> None:
    random = np.random.default_rng(0)
    first = random.normal(size=14)
    second = first - random.normal(0.25, 0.6, 14)
    differences = first - second
    sums = np.array(list(product((-1, 1), repeat=14))) @ differences
    exact = np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-12)
    assert 0.01 < exact < 0.3
    found = scores.paired_p(first, second, 10_000)  # 2^14 = 16,384 patterns are more
    assert found == pytest.approx(exact, abs=0.01)
    assert found == scores.paired_p(first, second, 10_000)


def test_pairs_with_a_number_that_is_missing_are_left_out() -> None:
    whole = scores.paired_p([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
    assert scores.paired_p([3.0, NAN, 5.0, 4.0], [1.0, 0.0, 2.0, 3.0]) == whole == 0.25
    assert math.isnan(scores.paired_p([1.0, NAN], [2.0, 3.0]))


def six_cases(loss: configuration.Loss, seed: int, shift: float) -> Record:
    """Dice .50 to .55 and .70 to .75 plus a shift; distances 1 to 6 and 11 to 16 mm."""
    rows = range(6)
    return record(
        loss,
        seed,
        [[0.5 + 0.01 * i + shift, 0.7 + 0.01 * i] for i in rows],
        [[1.0 + i, 11.0 + i] for i in rows],
    )


def test_the_table_has_the_layout_of_the_paper_with_means_deviations_and_stars() -> None:
    found = by_key(*(six_cases(loss, seed, shift) for loss, shift in ((RRW, 0.0), (DICE, 0.1)) for seed in (0, 1)))
    given = experiment()
    table = report.scores_table(report.Shown(given, given.tasks[0], found))
    assert table.head == ["loss", "Dice one", "Dice two", "HD one", "HD two"]
    # Deviation of .50 ... .55 twice over, n - 1 = 11: sqrt(2 * 0.00175 / 11) = 0.01784; of 1 ... 6: 1.784.
    assert table.rows == [
        ["RRW", "0.525 ± 0.018", "**0.725** ± 0.018", "**3.5** ± 1.8", "**13.5** ± 1.8"],
        # Six cases that are all better: p = 2/64.
        ["Dice", "**0.625** ± 0.018 *", "**0.725** ± 0.018", "**3.5** ± 1.8", "**13.5** ± 1.8"],
    ]
    assert "6 cases and the seeds 0, 1" in table.note
    assert "p < 0.05 against RRW: paired permutation test over cases, seeds averaged, 10,000 resamples" in table.note
    by_seed = report.seeds_table(report.Shown(given, given.tasks[0], found))
    assert [row[:3] for row in by_seed.rows] == [
        ["RRW", "0", "0.525"],
        ["RRW", "1", "0.525"],
        ["Dice", "0", "0.625"],
        ["Dice", "1", "0.625"],
    ]


def test_strategies_show_what_the_rectified_map_changes_where_all_else_is_the_same() -> None:
    def joined(maps: str, schedule: str) -> configuration.Loss:
        return configuration.Loss(f"{maps} {schedule}", region="dice", maps=maps, schedule=schedule)

    shifts = {("rectified", "equal"): 0.1, ("boundary", "equal"): 0.0, ("rectified", "gradual"): 0.2}
    losses = {key: joined(*key) for key in shifts}
    found = by_key(*(six_cases(losses[key], seed, shift) for key, shift in shifts.items() for seed in (0, 1)))
    given = experiment("strategies", tuple(losses.values()), baseline=None)
    table = report.maps_table(report.Shown(given, given.tasks[0], found))
    # The gradual one has no counterpart. Six cases that are all better: p = 2/64; no difference: p = 1.
    assert table.rows == [["Dice, equal", "+0.100 *", "+0.000", "+0.0", "+0.0"]]
    assert "*" not in str(report.scores_table(report.Shown(given, given.tasks[0], found)).rows).replace("**", "")


def test_pairs_are_cases_with_their_seeds_averaged_or_cases_of_every_seed() -> None:
    shifts = {(RRW, 0): [0.0] * 3, (RRW, 1): [0.0] * 3, (DICE, 0): [0.1] * 3, (DICE, 1): [0.1, 0.1, -0.05]}
    found = by_key(
        *(record(loss, seed, [[0.5 + s, 0.5] for s in row], [[1.0, 1.0]] * 3) for (loss, seed), row in shifts.items())
    )
    p = {}
    for pairs in ("case", "case and seed"):
        given = experiment(pairs=pairs)
        p[pairs] = scores.cells(given, given.tasks[0], found)["Dice"]["dice"][0].p
    # Averaged: .1, .1, .025, all of one sign: 2/8. Each: five of .1 and one of -.05, 64 patterns; as far from 0 as
    # .45 are +-.45 (5 x .1, -.05) and +-.55: 4/64.
    assert p == {"case": pytest.approx(2 / 8), "case and seed": pytest.approx(4 / 64)}


def test_a_distance_that_does_not_exist_is_the_diagonal_or_is_left_out_and_is_counted() -> None:
    found = by_key(
        record(RRW, 0, [[0.5, 0.5]] * 2, [[2.0, 2.0], [4.0, 4.0]]),
        record(DICE, 0, [[0.0, 0.5], [0.5, 0.5]], [[INF, 2.0], [4.0, NAN]]),
    )
    for missing, mean, told in (("diagonal", 52.0, "counts as the diagonal"), ("ignore", 4.0, "is left out")):
        given = experiment(seeds=(0,), missing_hausdorff=missing)
        cells = scores.cells(given, given.tasks[0], found)["Dice"]["hausdorff"]
        assert (cells[0].mean, cells[0].missing) == (mean, 1)
        assert (cells[1].mean, cells[1].count, cells[1].missing) == (2.0, 1, 0)
        note = report.scores_table(report.Shown(given, given.tasks[0], found)).note
        assert told in note
        assert "Dice 1 times" in note


def test_a_loss_without_all_seeds_is_tested_on_those_that_both_have_and_the_report_says_what_is_missing() -> None:
    found = by_key(six_cases(RRW, 0, 0.0), six_cases(RRW, 1, 0.3), six_cases(DICE, 0, 0.1))
    given = experiment()
    cell = scores.cells(given, given.tasks[0], found)["Dice"]["dice"][0]
    assert cell.p == pytest.approx(2 / 64)
    assert cell.mean == pytest.approx(0.625)
    text = pages.markdown(report.parts([given], found)["comparison"], "figures")
    assert "**Not complete: 1 of 4 runs are missing.**" in text


def test_a_network_converged_if_it_ends_at_the_wanted_dice_from_the_epoch_on_that_it_stayed_there() -> None:
    def ended(curve: list[float], **more: object) -> Record:
        return record(
            RRW, 0, [[1.0, 1.0]], [[0.0, 0.0]], epochs=[2, 4, 6], dice_per_epoch=[[v, v] for v in curve], **more
        )

    told = scores.convergence(
        [
            ended([0.6, 0.7, 0.8]),
            ended([0.6, 0.4, 0.5]),
            ended([0.6, 0.6, 0.4]),
            ended([0.1, NAN, NAN]),
            ended([0.9, 0.9, 0.9], diverged=6),
        ],
        wanted=0.5,
    )
    assert told.epochs == (2, 6, None, None, None)
    assert told.final == (0.8, 0.5, 0.4, 0.0, 0.9)
    assert (told.share, told.diverged) == (0.4, 1)
    assert told.found == (True, True, True, False, True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two experiments that share the runs of RRW, three seeds."""
    seeds = (0, 1, 2)
    one, two = experiment(seeds=seeds), experiment("convergence", (RRW, BOUNDARY), seeds)
    for each in (one, two):
        (tmp_path / f"{each.name}.json").write_text(configuration.dumped(each))
    for loss, shift in ((RRW, 0.0), (DICE, 0.1), (BOUNDARY, -0.4)):
        for seed in seeds:
            records.append(tmp_path, six_cases(loss, seed, shift))
    return tmp_path


class Links(HTMLParser):
    """What a page loads, what it refers to within itself, and what it defines."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.used: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and value:
                if value.startswith("#"):
                    self.used.add(value[1:])
                elif tag != "a":
                    self.loads.append(value)


def test_the_report_is_markdown_with_figures_and_one_html_file_that_needs_nothing_else(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["experiment", "report", str(folder)]) == 0
    assert "report.html" in capsys.readouterr().out
    text = (folder / "report.md").read_text()
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (folder / name).read_text().startswith("<?xml")
    assert {path.stem for path in (folder / "figures").iterdir()} == {
        "comparison-hearts-dice",
        "convergence-hearts-cdf",
        "convergence-hearts-dice",
    }
    # RW-Boundary: Dice of one .10 to .15, of two .70 to .75: the mean of both is .425 on average.
    assert "| RW-Boundary | 3 | 0 (0 %) | - | 3 (100 %) | 0.425 | 0.425 | 0.425 | 0 |" in text
    assert "| RRW | 3 | 3 (100 %) | 2 | 3 (100 %) | 0.625 | 0.625 | 0.625 | 0 |" in text
    assert "9 of 9 runs are finished" in text
    for name in ("comparison", "convergence"):
        assert configuration.dumped(configuration.load(folder / f"{name}.json")).rstrip() in text
    page = Links()
    page.feed((folder / "report.html").read_text())
    assert page.loads == []
    assert len(page.ids) == len(set(page.ids))
    assert page.used <= set(page.ids)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert cli.main(["experiment", "report", str(folder)]) == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_document_gets_its_parts_between_markers_and_nothing_if_one_is_missing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "docs" / "experiments.md"
    target.parent.mkdir()

    def part(name: str) -> str:
        return f"<!-- {name}: made by {report.COMMAND} -->\nold\n<!-- end of {name} -->\n"

    target.write_text("By hand.\n" + part("data") + "Between.\n" + part("comparison"))
    before = target.read_text()
    assert cli.main(["experiment", "report", str(folder), "--into", str(target)]) == 2
    assert "<!-- convergence: made by" in capsys.readouterr().err
    assert target.read_text() == before
    target.write_text(before + part("convergence"))
    assert cli.main(["experiment", "report", str(folder), "--into", str(target)]) == 0
    text = target.read_text()
    assert text.startswith("By hand.\n<!-- data")
    assert "Between." in text
    assert "\nold\n" not in text
    assert "over seeds](experiments/comparison-hearts-dice.svg)" in text
    kept = tmp_path / "docs" / "experiments"
    assert (kept / "convergence-hearts-cdf.svg").exists()
    # From what lies beside it, the document can be made again.
    assert cli.main(["experiment", "report", str(kept), "--into", str(target)]) == 0
    assert target.read_text() == text
    assert len(records.load(kept)) == 9


def test_runs_of_different_images_are_not_put_into_one_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records.append(folder, record(RRW, 1, [[0.5, 0.5]] * 6, [[1.0, 1.0]] * 6, digest="other"))
    assert cli.main(["experiment", "report", str(folder)]) == 2
    assert f"data {HEARTS.name}: finished runs of different images" in capsys.readouterr().err


def test_the_document_shows_what_the_runs_that_lie_beside_it_say() -> None:
    target = Path(__file__).parents[2] / "docs" / "experiments.md"
    experiments, found = report.load(target.with_suffix(""))
    assert all(run.key in found for each in experiments for run in each.runs())
    content = {name: pages.markdown(blocks, "experiments") for name, blocks in report.parts(experiments, found).items()}
    text = target.read_text()
    assert pages.replaced(text, content, report.COMMAND) == text
    for picture in re.findall(r"\]\((experiments/.*?\.svg)\)", text):
        assert (target.parent / picture).is_file()
