"""Experiments from configuration to kept runs: what is kept, what is skipped, what a kill costs."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("monai", reason='experiments need pip install "rwkernels[experiments]"')
pytest.importorskip("scipy", reason='experiments need pip install "rwkernels[experiments]"')
pytest.importorskip("matplotlib", reason='experiments need pip install "rwkernels[experiments]"')
pytest.importorskip("nibabel", reason='experiments need pip install "rwkernels[experiments]"')
pytest.importorskip("tqdm", reason='experiments need pip install "rwkernels[experiments]"')
pytest.importorskip("filelock", reason='experiments need pip install "rwkernels[experiments]"')

from experiment_cases import BOUNDARY, DICE, GRADUAL, HEARTS, RRW, TINY, experiment, record
from msgspec.structs import replace

from rwkernels import cli
from rwkernels.experiments import configuration, datasets, presets, records, runner, training
from rwkernels.experiments.configuration import Data, Experiment, Loss, Run
from rwkernels.experiments.images import Part


def test_an_experiment_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    for name in presets.NAMES:
        for scale in presets.SCALES:
            path = tmp_path / "it.json"
            path.write_text(configuration.dumped(presets.experiment(name, scale)))
            assert configuration.load(path) == presets.experiment(name, scale)


def test_a_mistake_in_a_configuration_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "it.json"

    def refused(change: object, text: str) -> None:
        tree = configuration.tree(experiment())
        change(tree)  # type: ignore[operator]
        path.write_text(json.dumps(tree))
        with pytest.raises(ValueError, match=text):
            configuration.load(path)

    refused(lambda t: t["losses"][1].update(regoin="dice"), r"it.json.losses\[1\]: expected .*, got 'regoin'")
    refused(lambda t: t["losses"][0].update(maps="rectifed"), r"it.json.losses\[0\]: maps: expected")
    refused(lambda t: t["tasks"][0]["training"].update(epochs="3"), r"it.json.tasks\[0\].training.epochs: expected int")
    refused(lambda t: t["tasks"][0]["training"].update(epochs=0), "epochs: expected at least 1, got 0")
    refused(lambda t: t.pop("seeds"), "expected 'seeds', which is missing")
    refused(lambda t: t.update(seeds=[1, 1]), "seeds: expected each name once")
    refused(lambda t: t.update(baseline="CE"), "baseline: expected one of")
    refused(lambda t: t["losses"][0].update(region="dice"), "schedule: expected equal or gradual")
    path.write_text("{")
    with pytest.raises(ValueError, match="expected JSON, got something else in line 1"):
        configuration.load(path)


def test_the_key_of_a_run_follows_all_that_it_depends_on_and_not_the_name_of_its_loss() -> None:
    run = Run(HEARTS, TINY, GRADUAL, 0)
    assert run.key == Run(HEARTS, TINY, replace(GRADUAL, name="another name"), 0).key
    others = [
        replace(run, seed=1),
        replace(run, loss=replace(GRADUAL, alpha_step=0.4)),
        replace(run, data=Data("hearts", {**HEARTS.options, "size": 48})),
        replace(run, training=replace(TINY, learning_rate=1e-3)),
    ]
    assert len({run.key, *(other.key for other in others)}) == 5


def test_an_epoch_of_steps_goes_on_in_the_slices_where_the_last_one_stopped() -> None:
    epochs = list(training.batches(5, 2, 3, seed=1, steps=2))
    assert [len(epoch) for epoch in epochs] == [2, 2, 2]
    seen = torch.cat([index for epoch in epochs for index in epoch])
    assert sorted(seen[:5].tolist()) == sorted(seen[5:].tolist()) == list(range(5))
    assert [len(epoch) for epoch in training.batches(5, 2, 2, seed=1)] == [3, 3]


def test_cases_of_several_slices_are_scored_as_volumes_with_their_spacing() -> None:
    labels = torch.zeros(3, 8, 8, dtype=torch.long)
    labels[:, 2:5, 2:5] = 1
    prediction = labels.clone()
    prediction[0] = 0  # the first slice of a volume of two; the third slice is a case of its own
    part = Part(torch.zeros(3, 1, 8, 8), labels, ("a", "a", "b"), ((7.0, 2.0, 3.0),) * 3)
    dice, hausdorff = training.case_scores(prediction, part, 2)
    assert dice == [[pytest.approx(2 * 9 / (9 + 18))], [1.0]]
    assert hausdorff == [[pytest.approx(7.0)], [0.0]]


def test_a_loss_that_is_not_finite_ends_the_run_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(torch.nn.Module):
        def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return logits.sum() * math.nan

    monkeypatch.setattr(training.losses, "build", lambda loss: Broken())
    result = training.train(Run(HEARTS, replace(TINY, epochs=5), RRW, 0), datasets.load(HEARTS))
    assert result.diverged == 1
    assert result.epochs == [1]
    assert len(result.dice) == 2


def test_generated_hearts_depend_on_their_seed_alone_and_share_no_subject_between_parts() -> None:
    images = datasets.load(Data("hearts", {"seed": 1, "subjects": 6, "slices": 3, "size": 48}))
    assert (
        images.digest() == datasets.load(Data("hearts", {"seed": 1, "subjects": 6, "slices": 3, "size": 48})).digest()
    )
    assert (
        images.digest() != datasets.load(Data("hearts", {"seed": 2, "subjects": 6, "slices": 3, "size": 48})).digest()
    )
    assert images.train.labels.unique().tolist() == [0, 1, 2, 3]
    spacings = {steps for part in (images.train, images.validation) for steps in part.spacing}
    assert len(spacings) == 6  # every subject has a grid of its own
    assert all(between > 3 * row for between, row, _ in spacings)
    volume = images.train.images[images.train.groups()[0][1]]
    assert volume.mean().item() == pytest.approx(0, abs=1e-5)
    # What makes it a problem: intensities of the background overlap those of every class.
    outside = images.train.images[:, 0][images.train.labels == 0]
    for k in (1, 2, 3):
        low, high = images.train.images[:, 0][images.train.labels == k].quantile(torch.tensor([0.25, 0.75])).tolist()
        assert ((outside > low) & (outside < high)).float().mean() > 0.02


def test_unknown_data_and_unknown_options_are_named() -> None:
    with pytest.raises(ValueError, match="data: expected one of hearts, mni152"):
        datasets.load(Data("heart"))
    with pytest.raises(ValueError, match="data hearts: got an unexpected keyword argument 'subject'"):
        datasets.load(Data("hearts", {"subject": 3}))
    with pytest.raises(ValueError, match=r"expected --data totalsegmentator-ct=PATH: .*pip download"):
        datasets.load(Data("totalsegmentator-ct"))


def test_a_record_comes_back_with_nan_and_infinity_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    first = record(RRW, 0, [[math.nan, 0.5]], [[math.inf, 1.5]])
    records.append(tmp_path, first)
    (tmp_path / records.NAME).open("ab").write(b'{"format": 1, "key": "torn by a ki')
    assert list(records.load(tmp_path)) == [first.run.key]
    second = record(DICE, 0, [[1.0, 0.0]], [[0.0, math.inf]])
    records.append(tmp_path, second)
    found = records.load(tmp_path)
    assert list(found) == [first.run.key, second.run.key]
    back = found[first.run.key].result
    assert math.isnan(back.dice[0][0])
    assert back.hausdorff == [[math.inf, 1.5]]
    assert found[second.run.key] == second

    lines = (tmp_path / records.NAME).read_bytes().splitlines(keepends=True)
    (tmp_path / records.NAME).write_bytes(lines[0] + b"garbage\n" + lines[1])
    with pytest.raises(records.RecordError, match=r"runs.jsonl, line 2: expected a finished run"):
        records.load(tmp_path)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc to see that no process is left")
def test_a_killed_experiment_loses_only_what_was_running_and_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    given = experiment(losses=(RRW, DICE, GRADUAL), seeds=(0,))
    # After three short runs a long one, which is what is killed.
    long = configuration.Task(Data("hearts", {"size": 128}), replace(TINY, epochs=1000))
    endless = Experiment("endless", "convergence", "Killed", (long,), (RRW,), (0,))
    for each in (given, endless):
        (tmp_path / f"{each.name}.json").write_text(configuration.dumped(each))
    command = [sys.executable, "-m", "rwkernels", "experiment", "run", "comparison.json", "endless.json"]
    process = subprocess.Popen(
        [*command, "--out", str(folder), "--processes", "1"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        file, deadline = folder / records.NAME, time.monotonic() + 120
        while not (file.exists() and file.read_bytes().count(b"\n") == 3):
            assert process.poll() is None, process.communicate()[0].decode()
            assert time.monotonic() < deadline, "no run was finished in two minutes"
            time.sleep(0.05)
        workers = children(process.pid)
        with pytest.raises(records.RecordError, match="another `rwkernels experiment run` is writing"):
            runner.execute(given.runs(), folder)
        assert workers
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "workers outlive their runner"
        time.sleep(0.05)

    kept = file.read_bytes()
    assert set(records.load(folder)) == {run.key for run in given.runs()}
    more = replace(given, losses=(*given.losses, BOUNDARY))
    told: list[tuple[str, bool]] = []
    outcome = runner.execute(
        more.runs(), folder, processes=1, told=lambda run, seconds: told.append((run.loss.name, seconds is None))
    )
    assert (outcome.finished, outcome.found, outcome.failed) == (1, 3, {})
    assert told == [("RRW", True), ("Dice", True), ("Dice+RW-Boundary", True), ("RW-Boundary", False)]
    assert file.read_bytes().startswith(kept)
    # In this process, on this seed, the same numbers as in the worker.
    images = datasets.load(HEARTS)
    for run in given.runs():
        again, before = training.train(run, images), records.load(folder)[run.key].result
        assert again.loss_per_epoch == pytest.approx(before.loss_per_epoch, rel=1e-5)


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = configuration.Task(Data("hearts", {"subjects": 0}), TINY)
    given = experiment(losses=(RRW,), seeds=(0,))
    both = [replace(given, name="bad", tasks=(bad,)), given]
    for each in both:
        (tmp_path / f"{each.name}.json").write_text(configuration.dumped(each))
    names = [str(tmp_path / f"{each.name}.json") for each in both]
    status = cli.main(["experiment", "run", *names, "--out", str(tmp_path / "out"), "--processes", "1"])
    told = capsys.readouterr()
    assert status == 1
    assert "1 runs finished, 0 were finished before, 1 failed" in told.out
    assert "hearts, RRW, seed 0: ValueError" in told.err
    assert (tmp_path / "out" / "report.html").exists()


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> str:
        assert cli.main(["experiment", *words]) == 2
        return capsys.readouterr().err

    out = str(tmp_path / "out")
    assert "expected comparison, convergence, strategies or a JSON file, got 'compare'" in refused(
        "run", "compare", "--out", out
    )
    assert "--data: expected one of hearts" in refused(
        "run", "comparison", "--scale", "tiny", "--out", out, "--data", "x=/"
    )
    nowhere = refused("run", "comparison", "--scale", "tiny", "--out", out, "--data", "hearts=/nowhere")
    assert "which does not exist" in nowhere
    assert "--device" in refused("run", "comparison", "--scale", "tiny", "--out", out, "--device", "cuda:77")
    assert "expected an experiment's NAME.json" in refused("report", str(tmp_path))
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    other = replace(presets.experiment("comparison", "tiny"), seeds=(7,))
    (tmp_path / "out" / "comparison.json").write_text(configuration.dumped(other))
    assert "comparison.json is another" in refused("run", "comparison", "--scale", "tiny", "--out", out)


def test_show_prints_a_configuration_that_run_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["experiment", "show", "strategies", "--scale", "tiny"]) == 0
    path = tmp_path / "mine.json"
    path.write_text(capsys.readouterr().out)
    assert cli.main(["experiment", "run", str(path), "--out", str(tmp_path), "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 8
    assert all("to run" in line for line in listed)


def test_the_papers_losses_are_in_the_presets() -> None:
    comparison = presets.experiment("comparison", "paper")
    assert comparison.losses[1:3] == (Loss("Dice", region="dice"), Loss("Focal", region="focal", gamma=2.0))
    gradual = comparison.losses[3]
    assert (gradual.region, gradual.maps, gradual.alpha_step, gradual.alpha_min) == ("dice", "boundary", 0.01, 0.01)
    assert comparison.resamples == 10_000
    assert len(comparison.seeds) == 3
    assert {task.training.epochs for task in presets.experiment("convergence", "paper").tasks} == {50}
    strategies = presets.experiment("strategies", "small")
    assert {(x.region, x.maps, x.schedule) for x in strategies.losses} == {
        (region, maps, schedule)
        for region in ("dice", "cross_entropy")
        for maps in ("rectified", "boundary")
        for schedule in ("equal", "gradual")
    }
    shared = {run.key for run in strategies.runs()} & {
        run.key for run in presets.experiment("comparison", "small").runs()
    }
    assert len(shared) == 3  # Dice+RW-Boundary gradual: one run for both experiments
