"""Mistakes in integrations, diagnostics, benchmarks and experiments."""

from __future__ import annotations

from plant import Mutation

INTEGRATIONS = [
    Mutation(
        "spacing-of-a-torchio-image",
        "swapped axes",
        "return tuple(float(size) for size in image.spacing)",
        "return tuple(float(size) for size in image.spacing[::-1])",
        ("test_torchio: axes_of_the_spacing",),
    ),
    Mutation(
        "transforms-that-exclude-the-map",
        "ignored option",
        "return transform.exclude is None or name not in transform.exclude",
        "return True",
        ("test_torchio: does_not_warn or parts_the_map",),
    ),
    Mutation(
        "probabilities-over-all-channels",
        "wrong divisor",
        "count * (values.shape[1] - first), device=total.device",
        "count * values.shape[1], device=total.device",
        ("test_monai_loss: every_convention",),
    ),
    Mutation(
        "rows-of-an-affine",
        "swapped axes",
        ".double()[:-1, :-1], dim=0)[:axes].tolist()",
        ".double()[:-1, :-1], dim=1)[:axes].tolist()",
        ("test_monai: oblique or slice_with_a_3d",),
    ),
    Mutation(
        "pixels-of-no-class",
        "ignored option",
        "return labels if ignore_index is None else torch.where(none, ignore_index, labels)",
        "return labels",
        ("test_monai_loss: every_convention", "test_monai: one_hot", "test_torchio: one_hot"),
    ),
    Mutation(
        "epoch-that-is-one-ahead",
        "off by one",
        "for _ in range(epoch): part.step()",
        "for _ in range(epoch + 1): part.step()",
        ("test_schedule",),
    ),
    Mutation(
        "ignored-label-of-a-map-that-was-read",
        "ignored option",
        "values.squeeze(1), num_classes=num_classes, ignore_index=checks.ignore_index(ignore_index),",
        "values.squeeze(1), num_classes=num_classes,",
        ("test_integration_arrays", "test_monai_loss: beside_a_given_map or hands_it_the_map or every_convention"),
    ),
]

DIAGNOSTICS = [
    Mutation(
        "true-class-as-low-as-the-others",
        "off by one",
        "not_lowest = counts & ~(own + tolerance < lowest)",
        "not_lowest = counts & ~(own + tolerance <= lowest)",
        ("test_diagnostics_signs: principle or tolerance",),
    ),
    Mutation(
        "ignored-pixels-break-the-principle",
        "ignored option",
        "unequal = counts & ~(highest - lowest <= tolerance)",
        "unequal = ~(highest - lowest <= tolerance)",
        ("test_diagnostics_signs: tolerance",),
    ),
    Mutation(
        "fraction-over-all-pixels",
        "wrong divisor",
        "entries = counts.sum() * logits.shape[1]",
        "entries = counts.numel() * torch.tensor(logits.shape[1])",
        ("test_diagnostics_signs: fraction",),
    ),
    Mutation(
        "histogram-without-its-last-bin",
        "off by one",
        "torch.bincount(found + 1, minlength=num_classes + 2)[1:]",
        "torch.bincount(found + 1, minlength=num_classes + 1)[1:]",
        ("test_diagnostics_signs: histogram", "test_documents: diagnostics"),
    ),
    Mutation(
        "gradient-on-the-simplex",
        "wrong sign",
        "return y * (values - (y * values).sum(-1, keepdim=True))",
        "return y * (values + (y * values).sum(-1, keepdim=True))",
        ("test_paper",),
    ),
]

BENCH = [
    Mutation(
        "gradient-that-is-no-number",
        "forgotten check",
        "return max(so_far, found) if math.isfinite(found) else math.inf",
        "return max(so_far, found)",
        ("test_bench_contenders: not_finite",),
        instead=(("worst = max(worst, off) if math.isfinite(off) else math.inf", "worst = max(worst, off)"),),
    ),
    Mutation(
        "slowest-of-the-others",
        "wrong reduction",
        "fastest = min(others, key=lambda row: row.median, default=None)",
        "fastest = max(others, key=lambda row: row.median, default=None)",
        ("test_bench_command: fastest",),
    ),
    Mutation(
        "boundary-map-of-the-truth",
        "wrong sign",
        "distance_transform_edt(~truth[index], sampling=task.spacing) - inside",
        "inside - distance_transform_edt(~truth[index], sampling=task.spacing)",
        ("test_bench_contenders: boundary",),
    ),
    Mutation(
        "goals-that-were-met",
        "dropped term",
        "verdicts += [curve.met for curve in run.curves if curve.met is not None]",
        "",
        ("test_bench_command",),
    ),
    Mutation(
        "rows-of-the-guard-that-grew",
        "wrong operator",
        "if row in before.rows and count > allowed * before.rows[row]]",
        "if row in before.rows and allowed * count > before.rows[row]]",
        ("test_bench_guard: grew",),
    ),
]

EXPERIMENTS = [
    Mutation(
        "deviation-of-all-there-is",
        "wrong divisor",
        "deviation=float(finite.std(ddof=1))",
        "deviation=float(finite.std())",
        ("test_experiment_report: layout",),
    ),
    Mutation(
        "converged-the-first-time",
        "wrong index",
        "after = int(below[-1]) + 1 if len(below) else 0",
        "after = int(below[0]) + 1 if len(below) else 0",
        ("test_experiment_report: converged",),
    ),
    Mutation(
        "pairs-of-other-seeds",
        "wrong operator",
        "seeds = {r.run.seed for r in first} & {r.run.seed for r in second}",
        "seeds = {r.run.seed for r in first} | {r.run.seed for r in second}",
        ("test_experiment_report: all_seeds",),
    ),
    Mutation(
        "hausdorff-distance-in-pixels",
        "ignored option",
        "spacing=spacing if isinstance(spacing, (int, float)) else list(spacing),",
        "spacing=spacing if isinstance(spacing, (int, float)) else None,",
        ("test_experiment_losses: equation",),
    ),
    Mutation(
        "class-that-neither-has",
        "wrong operator",
        "absent = ~_present(prediction, num_classes) & ~_present(labels, num_classes)",
        "absent = ~_present(prediction, num_classes) | ~_present(labels, num_classes)",
        ("test_experiment_losses: neither_has",),
    ),
    Mutation(
        "distances-that-do-not-exist",
        "ignored option",
        'np.where(np.isinf(stacked), diagonals if missing == "diagonal" else np.nan, stacked)',
        "np.where(np.isinf(stacked), diagonals, stacked)",
        ("test_experiment_report: does_not_exist",),
    ),
]

AREAS = {
    "integrations": INTEGRATIONS,
    "diagnostics": DIAGNOSTICS,
    "bench": BENCH,
    "experiments": EXPERIMENTS,
}
