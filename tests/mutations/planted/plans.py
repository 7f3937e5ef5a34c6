"""Mistakes in losses that repeat (plans), and in those that are trained together."""

from __future__ import annotations

from plant import Mutation

PLANS = [
    Mutation(
        "plan-of-another-stride",
        "stale value",
        "key += tensor.shape, tensor.stride(), tensor.dtype, tensor.device",
        "key += tensor.shape, tensor.dtype, tensor.device",
        ("test_planned: whatever_changes",),
    ),
    Mutation(
        "plan-of-another-dtype",
        "stale value",
        "key += tensor.shape, tensor.stride(), tensor.dtype, tensor.device",
        "key += tensor.shape, tensor.stride(), tensor.device",
        ("test_planned: whatever_changes",),
    ),
    Mutation(
        "plan-of-another-spacing",
        "ignored option",
        "key.append(tuple(spacing) if isinstance(spacing, list) else spacing)",
        "key.append(None)",
        ("test_planned: whatever_changes or changed_on_the_module",),
    ),
    Mutation(
        "plan-of-another-environment",
        "ignored option",
        "key: list[Hashable] = [os.environ.get(ENVIRONMENT_VARIABLE)]",
        "key: list[Hashable] = [None]",
        ("test_planned: environment",),
    ),
    Mutation(
        "plan-of-other-weights",
        "ignored option",
        "full_key = (*key, *weights, black_border, options, with_grad)",
        "full_key = (*key, black_border, options, with_grad)",
        ("test_planned: levels or other_weights", "test_deep_supervision"),
    ),
    Mutation(
        "plan-of-another-border",
        "ignored option",
        "full_key = (*key, *weights, black_border, options, with_grad)",
        "full_key = (*key, *weights, options, with_grad)",
        ("test_planned: whatever_changes",),
    ),
    Mutation(
        "plan-reads-negated-views",
        "dropped check",
        "tensor.layout is not torch.strided or tensor.is_neg():",
        "tensor.layout is not torch.strided:",
        ("test_planned: negated",),
    ),
    Mutation(
        "plan-under-a-dispatch-mode",
        "dropped check",
        "or torch._C._len_torch_dispatch_stack()",
        "or False",
        ("test_planned: dispatch_mode",),
    ),
    Mutation(
        "plan-in-forward-mode",
        "dropped check",
        "or forward_ad._current_level >= 0 or torch._C",
        "or torch._C",
        ("test_planned: forward_mode",),
    ),
    Mutation(
        "plan-keeps-bad-labels-to-itself",
        "dropped check",
        "except BadInputError: return None",
        "except BadInputError: raise",
        ("test_planned: bad_input",),
    ),
    Mutation(
        "plans-without-end",
        "off by one",
        "if len(_plans) >= _KEPT: _plans.clear()",
        "if len(_plans) < 0: _plans.clear()",
        ("test_planned: bounded",),
    ),
    Mutation(
        "plan-changes-a-gradient-that-is-asked-for-again",
        "in place",
        "in_place = not mode.graph_is_kept() return None, None, *plan.scale",
        "in_place = True return None, None, *plan.scale".replace(" return", "\n            return"),
        ("test_autograd: graph_that_is_kept",),
    ),
    Mutation(
        "plan-forgets-the-weight-of-a-level",
        "dropped factor",
        "upstream if weight == 1 else upstream * weight, problem, own",
        "upstream, problem, own",
        ("test_planned: second_derivatives",),
    ),
    Mutation(
        "plan-of-a-map-that-wants-a-gradient",
        "dropped check",
        "if key is None or any(tensor is not None and tensor.requires_grad for tensor in tensors):",
        "if key is None:",
        ("test_planned: bad_input",),
    ),
    Mutation(
        "plan-divides-by-ignored-pixels",
        "wrong divisor",
        "pixels = self._pixels if count is None else int(count.sum())",
        "pixels = self._pixels",
        ("test_planned: do_not_count or step_from_labels",),
    ),
    Mutation(
        "plan-on-the-default-device",
        "wrong device",
        "foreground = logits.new_empty(self._shape, dtype=torch.float32)",
        "foreground = torch.empty(self._shape, dtype=torch.float32)",
        ("test_planned: default_device",),
    ),
    Mutation(
        "plan-of-a-subclass-with-another-map",
        "dropped check",
        "if type(self).build_map is not RegionWiseLoss.build_map: return None",
        "",
        ("test_planned: builds_its_own_map",),
    ),
    Mutation(
        "levels-at-the-corner",
        "off by one",
        "slice(step // 2, None, step)",
        "slice(0, None, step)",
        ("test_deep_supervision: resampled or nearest or centre or labels",),
    ),
    Mutation(
        "sum-over-processes",
        "dropped factor",
        'if reduction == "sum": return loss * size_of(group)',
        'if reduction == "sum": return loss',
        ("test_ddp",),
    ),
]

JOINT = [
    Mutation(
        "dice-counts-the-prediction-twice",
        "wrong factor",
        "found[:, k + first : 2 * k] = quotient.share * overlap.prediction * inner",
        "found[:, k + first : 2 * k] = 2 * quotient.share * overlap.prediction * inner",
        ("test_joint: factors_are",),
    ),
    Mutation(
        "cross-entropy-of-unweighed-pixels",
        "wrong divisor",
        "weighed = (target.sum(0) * entropy_weights(problem, target.dtype)).sum()",
        "weighed = target.sum()",
        ("test_joint_losses: cross_entropy_is",),
    ),
    Mutation(
        "dice-of-a-background-left-out",
        "off by one",
        "first, overlap = 0 if problem.dice_background else 1, Overlap(*problem.overlap)",
        "first, overlap = 0, Overlap(*problem.overlap)",
        ("test_joint_losses: dice", "test_joint: autograd or dtypes or threads or hand"),
    ),
    Mutation(
        "dice-of-every-image-in-a-batch",
        "ignored option",
        "if problem.whole_batch: intersection",
        "if False: intersection",
        ("test_joint_losses: dice", "test_joint: autograd or dtypes or threads or hand"),
    ),
    Mutation(
        "alpha-of-both-losses",
        "wrong factor",
        "weights = start + _on_device(self.terms.weights(-1.0), logits.device) * alpha.to(start)",
        "weights = start + _on_device(self.terms.weights(0.0), logits.device) * alpha.to(start)",
        ("test_joint_losses: gradual",),
    ),
    Mutation(
        "named-losses-that-share-nothing",
        "dropped element",
        "region_loss = NAMED[region_loss](**shared)",
        "region_loss = NAMED[region_loss]()",
        ("test_joint_losses: takes_of_the_other",),
    ),
    Mutation(
        "focal-alpha-of-the-background",
        "swapped classes",
        "(1 - self.alpha, *[self.alpha] * (classes - 1))",
        "(self.alpha, *[1 - self.alpha] * (classes - 1))",
        ("test_joint_losses: focal_loss_is",),
    ),
]

AREAS = {"plans": PLANS, "joint": JOINT}
