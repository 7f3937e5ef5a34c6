"""The command `rwkernels bench`: what it measures, prints, keeps and compares, and how it ends."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rwkernels import cli, commands
from rwkernels.bench import charts, compare, harness, results, session, summary, table
from rwkernels.bench import page as html
from rwkernels.bench.command import NAME
from rwkernels.bench.names import DENSE, EAGER, SCIPY
from rwkernels.bench.registry import cases
from rwkernels.bench.results import Ratio, Row, Run

ONLY = "^distance: T5|^scaling, map, batch"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny run as the command keeps it, with one library hidden and one that answers wrongly."""
    folder = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "edt", None)
        assert cli.main(["bench", "--tiny", "--only", ONLY + "|single", "--save", str(folder)]) == 0
    return folder


def run_of(folder: Path) -> Run:
    return results.load(folder)


def test_a_run_is_kept_with_everyone_who_took_part_and_everyone_who_did_not(saved):
    run = run_of(saved)
    assert {row.case for row in run.rows} == set(run.took)
    assert {row.threads for row in run.rows} == {1, commands.processors()}
    missing = {row.contender for row in run.rows if row.verdict == "missing"}
    wrong = {row.contender for row in run.rows if row.verdict == "wrong"}
    assert {"edt", "edt + torch"} <= missing
    assert SCIPY in wrong
    ours = [row for row in run.rows if row.ours]
    assert all(row.ranked and row.moved > 0 and row.share and row.buffer for row in ours)
    assert not run.interrupted


def test_what_is_read_back_is_what_was_kept(saved):
    kept = (saved / f"{NAME}.json").read_text()
    assert results.dumped(run_of(saved)) == kept


def test_pytest_benchmark_compares_two_kept_runs(saved, tmp_path):
    other = tmp_path / "other.json"
    other.write_text((saved / f"{NAME}.json").read_text())
    command = [sys.executable, "-m", "pytest_benchmark", "compare", str(saved / f"{NAME}.json"), str(other)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "rwkernels, reused buffer" in done.stdout
    kept = json.loads(other.read_text())
    names = [entry["fullname"] for entry in kept["benchmarks"]]
    assert len(set(names)) == len(names)
    for entry in kept["benchmarks"]:
        assert entry["stats"]["rounds"] == len(entry["stats"]["data"]) > 0
        assert {"verdict", "case", "contender"} & set(entry["extra_info"])
    assert kept["not_ranked"]


def test_curves_have_an_exponent_for_every_contender_that_was_timed(saved):
    run = run_of(saved)
    fitted = {(curve.curve, curve.contender) for curve in run.curves}
    assert ("map, batch", "rwkernels compact, reused buffer") in fitted
    points = [
        row for row in run.rows if row.curve == "map, batch" and row.ranked and row.contender not in harness.COPIES
    ]
    assert all(row.exponent is not None for row in points)
    first = run.curves[0]
    used = [(r.axis_value, r.median) for r in points if (r.contender, r.threads) == (first.contender, first.threads)]
    assert first.exponent == pytest.approx(results.fit(used)[0], abs=1e-3)


def test_the_report_needs_nothing_from_outside_and_has_a_drawing_for_either_width(saved):
    text = (saved / f"{NAME}.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', re.sub(r'xlink:href="#[^"]*"', "", text))
    assert "<script" not in text
    assert "url(http" not in text
    assert "#0102" not in text
    assert text.count('class="wide"') == text.count('class="narrow"') > 0
    assert "prefers-color-scheme:dark" in text
    assert "width=device-width" in text
    for wanted in ("missing: edt is not installed", "where there is no other label", "Not ranked", "Method"):
        assert wanted in text
    assert "$" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)


def test_names_are_escaped_in_the_report(saved):
    run = run_of(saved)
    run.rows = [replace(row, reason="<script>alert(1)</script>") if not row.ranked else row for row in run.rows]
    assert "<script>" not in html.page(run)


def test_the_table_names_the_losers_and_the_missing(saved, capsys):
    from rich.console import Console

    table.show(run_of(saved), Console(width=200, highlight=False))
    printed = capsys.readouterr().out
    assert "not ranked SciPy per class: wrong: 1 where there is no other label to measure to" in printed
    assert "edt is not installed" in printed
    assert "exponent" in printed


def test_the_cases_are_listed_without_measuring(capsys):
    assert cli.main(["bench", "--list", "--only", "^distance: T1"]) == 0
    printed = capsys.readouterr().out
    assert "distance: T1 16x256^2 K=4  (threads 1" in printed
    assert "1 case, estimated" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "no such case"], "no case matches 'no such case'"),
        (["--only", "("], "--only: expected a regular expression"),
        (["--compare", "nowhere"], "nowhere"),
        (["--tiny", "--only", "T5", "--save", __file__], "--save: expected a folder that can be written"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused_by_name(arguments, message, capsys):
    assert cli.main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"benchmarks": []}')
    with pytest.raises(ValueError, match="rwkernels bench --save"):
        results.load(path)


def test_without_the_extra_the_command_names_it(monkeypatch, capsys):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rich" else find(name))
    assert cli.main(["bench", "--quick"]) == 1
    assert 'rich not installed; it needs the extra: pip install "rwkernels[bench]"' in capsys.readouterr().err


def test_an_interrupted_run_keeps_what_there_is(monkeypatch, tmp_path):
    measure = session.measure_case

    def interrupted(case, *arguments):
        if "T2" in case.id:
            raise KeyboardInterrupt
        return measure(case, *arguments)

    monkeypatch.setattr(session, "measure_case", interrupted)
    given = ["bench", "--tiny", "--threads", "1", "--only", "^distance: T[12]", "--save", str(tmp_path)]
    assert cli.main(given) == 130
    run = run_of(tmp_path)
    assert run.interrupted
    assert list(run.took) == [case.id for case in cases("tiny")[:1]]
    assert "interrupted" in (tmp_path / f"{NAME}.html").read_text()


def test_a_wrong_answer_of_ours_fails_the_command(monkeypatch, capsys):
    import rwkernels as rw

    right = rw.distance_transform
    monkeypatch.setattr(rw, "distance_transform", lambda *a, **k: right(*a, **k) * 1.001)
    assert cli.main(["bench", "--tiny", "--threads", "1", "--only", "^distance: T5"]) == 1
    assert "wrong: " in capsys.readouterr().err


# --- comparing -------------------------------------------------------------------------------------------------


def row(median: float, ratio: float, contender: str = "rwkernels") -> Row:
    spread = [median * f for f in (0.99, 1.0, 1.01)]
    low, high = 0.99 * ratio, 1.01 * ratio
    return Row(
        "c", "f", "t", contender, 1, seconds=tuple(spread), peer="edt", ratio=ratio, ratio_low=low, ratio_high=high
    )


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        (row(1.0, 10.0), row(1.0, 5.0), "slower"),
        (row(1.0, 10.0), row(3.0, 10.0), "same"),  # the machine was busy: the peer took longer too
        (row(1.0, 10.0), row(1.0, 10.5), "same"),
        (row(1.0, 10.0), row(0.5, 20.0), "faster"),
    ],
)
def test_runs_are_compared_by_the_ratio_to_the_peer_of_the_same_run(before, now, verdict):
    assert compare.Change(before, now).verdict == verdict


def test_the_command_compares_with_an_earlier_run(saved, capsys):
    assert cli.main(["bench", "--tiny", "--only", "^distance: T5", "--compare", str(saved)]) == 0
    assert "compared with the earlier run" in capsys.readouterr().out


def test_a_row_that_is_slower_than_anybody_it_raced_is_shown_once_against_the_fastest():
    slow = replace(row(1.0, 2.0), ratios=(Ratio("third", 2.0, 2.0, 2.0, "faster", 3.0),))
    others = [row(2.0, 1.0, "edt"), row(0.5, 4.0, "third"), row(0.25, 8.0, "fourth"), row(0.1, 20.0, harness.COPY)]
    fast, reference = row(0.2, 10.0, "rwkernels, reused buffer"), row(9.0, 0.2, "rwkernels reference backend")
    alone = replace(row(1.0, 1.0), case="nobody else is here")
    run = Run("full", {}, {}, [slow, fast, reference, *others, alone])
    ((lost, ratio),) = summary.losing(run)
    assert (lost, ratio.peer, ratio.value) == (slow, "fourth", pytest.approx(0.25))
    assert [ours for ours, _ in summary.raced(run)] == [slow, fast]
    assert summary.missed(run) == [(slow, slow.ratios[0])]
    assert summary.goals(run) == (0, 1)


def test_a_run_of_a_gpu_alone_has_its_sentence_tiles_and_charts():
    ours = replace(row(1.0, 5.0, DENSE), family="loss", peer=EAGER, threads=7, device="cuda", pattern="hearts")
    run = Run("full", {"cpu": {}, "gpu": {"name": "a GPU"}}, {}, [ours])
    assert summary.sentence(run) == (
        "On a GPU, rwkernels computes loss and gradient 5.0 times faster than eager PyTorch."
    )
    assert ("loss and gradient, against eager PyTorch", "5.0") in summary.told(run, "tile")
    assert charts.ratio_bars(run, "cuda") is not None
    assert charts.time_bars(run, "cuda") is not None


def test_a_row_that_was_timed_for_the_truth_says_so():
    once = replace(row(1.0, 1.0), seconds=(1.0,))
    assert "once" in table.cells(once)
    assert "once, for the truth" in table.cells(replace(once, of_truth=True))


def test_brackets_in_names_and_reasons_are_shown_as_they_are(saved, capsys):
    from rich.console import Console

    run = run_of(saved)
    run.rows = [row if row.ranked else replace(row, reason="cannot load [/tmp/x.so] [red]") for row in run.rows]
    table.show(run, Console(width=400, highlight=False))
    printed = capsys.readouterr().out
    assert printed.count("cannot load [/tmp/x.so] [red]") >= 2


def test_a_run_is_kept_before_it_is_shown(tmp_path, monkeypatch):
    def broken(*_):
        raise BrokenPipeError

    monkeypatch.setattr(table, "show", broken)
    with pytest.raises(BrokenPipeError):
        cli.main(["bench", "--tiny", "--threads", "1", "--only", "^distance: T5", "--save", str(tmp_path)])
    assert run_of(tmp_path).rows


@pytest.mark.parametrize("name", ["cut.json.gz", "broken.json.gz", "list.json", "entries.json"])
def test_a_damaged_file_is_refused_by_its_name(saved, tmp_path, name):
    packed = gzip.compress((saved / f"{NAME}.json").read_bytes())
    content = {
        "cut.json.gz": packed[: len(packed) // 2],
        "broken.json.gz": packed[:10] + b"\xff" * 50,
        "list.json": b"[1, 2]",
        "entries.json": (saved / f"{NAME}.json").read_bytes().replace(b'"extra_info":{', b'"extra_info":[],"x":{'),
    }[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=name):
        results.load(path)


def test_a_busy_machine_an_interrupted_and_a_quick_run_are_said_to_be_so():
    quiet = Run("full", {"load_average": 0.3, "processors": 2}, {})
    assert summary.caveats(quiet) == []
    told = summary.caveats(
        replace(quiet, scale="quick", machine={"load_average": 9.0, "processors": 2}, interrupted=True)
    )
    assert len(told) == 3
    assert any("9.0 processes" in text for text in told)


# --- pytest benchmarks/ ----------------------------------------------------------------------------------------


def test_the_same_cases_run_under_pytest_and_keep_the_same_file(tmp_path):
    if not (ROOT / "benchmarks").is_dir():
        pytest.skip("benchmarks/ is not beside the tests")
    kept = tmp_path / "kept.json"
    chosen = ["--scale", "tiny", "-k", "distance and T5 and not rectified"]
    command = [sys.executable, "-m", "pytest", "benchmarks/test_bench.py", "-q", *chosen]
    # pytest-benchmark measures nothing in a worker of xdist.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", f"--benchmark-json={kept}"],
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = results.load(kept)
    assert {row.contender for row in run.rows} == {"rwkernels", "rwkernels, reused buffer", "edt"}
    entry = json.loads(kept.read_text())["benchmarks"][0]
    first = next(row for row in run.rows if row.name == entry["name"])
    assert entry["stats"]["median"] == pytest.approx(first.median)
    assert entry["fullname"].startswith("rwkernels.bench::distance: T5")


# --- documents -------------------------------------------------------------------------------------------------


def test_the_tables_of_the_documents_are_what_the_command_makes_of_the_kept_run():
    publish = pytest.importorskip("benchmarks.publish", reason="benchmarks/ is not beside the tests")
    run = results.load(publish.KEPT)
    readme, document = publish.README.read_text(), publish.DOCUMENT.read_text()
    assert publish.replaced(readme, {"benchmark table": publish.readme_part(run)}, publish.COMMAND) == readme
    for name, content in publish.document_parts(run).items():
        assert publish.replaced(document, {name: content}, publish.COMMAND) == document, name
    for name in re.findall(r"\]\(benchmarks/(\w+\.svg)\)", document):
        assert (publish.PICTURES / name).read_text().startswith("<svg")


def test_only_a_full_run_is_published_unless_asked(saved, tmp_path, monkeypatch, capsys):
    publish = pytest.importorskip("benchmarks.publish", reason="benchmarks/ is not beside the tests")
    kept = tmp_path / "kept.json"
    kept.write_bytes((saved / f"{NAME}.json").read_bytes())
    monkeypatch.setattr(publish, "KEPT", kept)
    monkeypatch.setattr(publish, "publish", lambda run: pytest.fail("published") if run.scale == "tiny" else [])
    assert publish.main([]) == 2
    assert "expected a full run, got one that is tiny" in capsys.readouterr().err
    assert publish.main(["--measure", "--quick"]) == 2
    kept.write_text(re.sub(r'"scale": ?"tiny"', '"scale":"full"', kept.read_text()))
    assert publish.main([]) == 0
    monkeypatch.setattr(publish, "publish", lambda _: [])
    kept.write_bytes((saved / f"{NAME}.json").read_bytes())
    assert publish.main(["--quick-anyway"]) == 0


def test_cases_that_are_measured_again_take_the_place_of_their_old_rows_alone(saved, tmp_path, monkeypatch):
    publish = pytest.importorskip("benchmarks.publish", reason="benchmarks/ is not beside the tests")
    before = run_of(saved)
    case = next(case for case in before.took if case.startswith("scaling"))
    again = replace(before, rows=[replace(row, seconds=(7.0,)) for row in before.rows if row.case == case])
    again.took = {case: 1.0}
    renewed = results.with_renewed(before, again)
    assert [row.case for row in renewed.rows] == [row.case for row in before.rows]
    assert all((row.seconds == (7.0,)) == (row.case == case) for row in renewed.rows)
    assert renewed.curves != before.curves
    assert renewed.renewed == (case,)
    assert results.from_json(json.loads(results.dumped(renewed))).renewed == (case,)
    assert f"1 of its {len(before.took)} cases were measured again later" in publish.took(renewed)
    with pytest.raises(ValueError, match="again: expected a whole run"):
        results.with_renewed(before, replace(again, scale="quick"))
    with pytest.raises(ValueError, match="again: expected cases of the earlier run, got 'other'"):
        results.with_renewed(before, replace(again, took={"other": 1.0}))
