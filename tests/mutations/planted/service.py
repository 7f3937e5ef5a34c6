"""Mistakes in the service and its clients."""

from __future__ import annotations

from plant import Mutation

SERVICE = [
    Mutation(
        "maxima-of-one-image",
        "dropped factor",
        "(4 * self.shape[0] * self.num_classes if self.class_max else 0)",
        "(4 * self.num_classes if self.class_max else 0)",
        ("test_service_messages", "test_service: largest_distances"),
    ),
    Mutation(
        "border-does-not-part-requests",
        "dropped element",
        "self.ignore_index, self.black_border, self.options, self.class_max,",
        "self.ignore_index, self.options, self.class_max,",
        ("test_service_batching",),
        instead=(
            (
                "dtype=dtype, slot=None, in_slot=False)",
                "dtype=dtype, slot=None, in_slot=False, black_border=False)",
            ),
        ),
    ),
    Mutation(
        "repeated-keys-of-a-header",
        "forgotten check",
        "_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_no_constant)",
        "_DECODER = json.JSONDecoder(parse_constant=_no_constant)",
        ("test_service_hostile: malformed or one_thing_wrong or no_request",),
    ),
    Mutation(
        "axes-beyond-the-limit",
        "wrong operand",
        'fields.at_most("shape", max(shape[1:]), limits.axis, "pixels along an axis")',
        'fields.at_most("shape", min(shape[1:]), limits.axis, "pixels along an axis")',
        ("test_service_hostile: limits", "test_service_messages: limits"),
        instead=(('("shape", max(found.shape[1:]), limits.axis,', '("shape", min(found.shape[1:]), limits.axis,'),),
    ),
    Mutation(
        "everybody-gets-the-first-map",
        "wrong offset",
        "payload = host[start : start + size].numpy()",
        "payload = host[:size].numpy()",
        ("test_service_batching: own_maps",),
    ),
    Mutation(
        "everybody-gets-the-first-count",
        "wrong offset",
        "tuple(counts[start : start + size])",
        "tuple(counts[:size])",
        ("test_service_batching: count",),
    ),
    Mutation(
        "joined-launches-without-end",
        "forgotten update",
        "left -= job.request.label_bytes taken.append(job)",
        "taken.append(job)",
        ("test_service_batching: bytes",),
    ),
    Mutation(
        "errors-of-the-machine-told",
        "leaked text",
        "if type(error) is kind: return kind.__name__, str(error)",
        "if isinstance(error, Exception): return kind.__name__, str(error)",
        ("test_service_batching: machine", "test_service_hostile: machine"),
    ),
    Mutation(
        "one-request-too-many",
        "off by one",
        "self.requests < self._most_requests and self.size",
        "self.requests <= self._most_requests and self.size",
        ("test_service_life: full or room", "test_service_stream: room or share"),
    ),
    Mutation(
        "room-that-nobody-is-told-of",
        "missing wake-up",
        "self.requests -= 1 self.size -= size self._admit()",
        "self.requests -= 1; self.size -= size",
        ("test_service_stream: room", "test_service_life: full"),
    ),
    Mutation(
        "slots-that-shrink",
        "forgotten seal",
        "fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL",
        "fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL",
        ("test_service_memory: sealed",),
    ),
    Mutation(
        "room-of-slots-never-given-back",
        "forgotten update",
        "self.used -= len(slot.bytes) self._slots -= 1",
        "self._slots -= 1",
        ("test_service_memory: give_all_back",),
    ),
    Mutation(
        "any-memory-is-opened",
        "forgotten check",
        'if self._is(f"/proc/self/fd/{descriptor}"): return mmap.mmap(descriptor, 0)',
        "return mmap.mmap(descriptor, 0)",
        ("test_service_memory: looked_at",),
    ),
    Mutation(
        "slots-of-a-parent-process",
        "missing copy",
        "self._free = self._free.copy()",
        "self._free = self._free",
        ("test_service_slots: forked",),
    ),
    Mutation(
        "token-of-any-scheme",
        "forgotten check",
        'return scheme.lower() == b"bearer" and any(matches)',
        "return any(matches)",
        ("test_service_security: bearers",),
    ),
    Mutation(
        "service-that-anybody-may-ask",
        "wrong operator",
        'if not authenticated and "anonymous" not in forced:',
        'if not authenticated and not encrypted and "anonymous" not in forced:',
        ("test_service_security: forced",),
    ),
    Mutation(
        "ignored-label-on-its-way",
        "ignored option",
        "packed, num_classes if another else ignore_index",
        "packed, ignore_index",
        ("test_service_labels",),
    ),
    Mutation(
        "shared-memory-of-another-machine",
        "forgotten check",
        "if request.slot is not None and self._is_here:",
        "if request.slot is not None:",
        ("test_service_stream: this_machine",),
    ),
    Mutation(
        "bytes-in-memory-do-not-count",
        "forgotten update",
        "payload = left self._count_bytes(len(payload))",
        "payload = left",
        ("test_service_stream: count_as_bytes",),
    ),
]

AREAS = {"service": SERVICE}
