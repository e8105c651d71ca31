from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.sensitivity import LabelRules, permit, resolve
from policies.types import Sensitivity
from tests.policies.builders import INTERNAL, PUBLIC, SENSITIVE, facts, label, principal

PLAIN = LabelRules()
STRICT = LabelRules(default=SENSITIVE, image_default=SENSITIVE)
NAMED = LabelRules(
    names={**PLAIN.names, "机密": SENSITIVE, "secret": SENSITIVE},
    tenant_default={"open-data": PUBLIC, "clinic": SENSITIVE},
)


def level_of(
    *,
    floor: Sensitivity | None = None,
    header: tuple[str, ...] = (),
    body: object = None,
    images: bool = False,
    tenant: str = "acme",
    rules: LabelRules = PLAIN,
    malformed: bool = False,
) -> tuple[Sensitivity, str, bool]:
    """The level that counts, where it came from, and whether something is said about it."""
    who = principal(tenant=tenant, sensitivity_floor=floor, label_malformed=malformed)
    found = resolve(who, header, body, has_images=images, rules=rules)
    return found.level, found.source, found.note is not None


CASES: list[tuple[str, dict[str, Any], tuple[Sensitivity, str, bool]]] = [
    # one source
    ("none", {}, (INTERNAL, "default", False)),
    ("header", {"header": ("public",)}, (PUBLIC, "header", False)),
    ("header, sensitive", {"header": ("sensitive",)}, (SENSITIVE, "header", False)),
    ("header, spelling", {"header": ("  Public\t",)}, (PUBLIC, "header", False)),
    ("body", {"body": "public"}, (PUBLIC, "body", False)),
    ("claim", {"floor": SENSITIVE}, (SENSITIVE, "claim", False)),
    ("claim is a floor", {"floor": PUBLIC}, (INTERNAL, "default", False)),
    # the strictest wins
    ("header over body", {"header": ("internal",), "body": "public"}, (INTERNAL, "header", False)),
    ("body over header", {"header": ("public",), "body": "sensitive"}, (SENSITIVE, "body", False)),
    ("claim over both", {"floor": INTERNAL, "header": ("public",), "body": "public"},
     (INTERNAL, "claim", False)),
    ("both over claim", {"floor": PUBLIC, "header": ("internal",)}, (INTERNAL, "header", False)),
    # what cannot be read is the strictest
    ("unknown header", {"header": ("confidential",)}, (SENSITIVE, "header", True)),
    ("typing error", {"header": ("publick",)}, (SENSITIVE, "header", True)),
    ("empty header", {"header": ("",)}, (SENSITIVE, "header", True)),
    ("two in one header", {"header": ("public, public",)}, (SENSITIVE, "header", True)),
    ("wide letters", {"header": ("ｐｕｂｌｉｃ",)}, (SENSITIVE, "header", True)),
    ("body empty", {"body": ""}, (SENSITIVE, "body", True)),
    ("body number", {"body": 0}, (SENSITIVE, "body", True)),
    ("body false", {"body": False}, (SENSITIVE, "body", True)),
    ("body list", {"body": ["public"]}, (SENSITIVE, "body", True)),
    ("body empty list", {"body": []}, (SENSITIVE, "body", True)),
    ("body object", {"body": {"level": "public"}}, (SENSITIVE, "body", True)),
    ("claim unreadable", {"malformed": True, "header": ("public",)}, (SENSITIVE, "claim", True)),
    ("claim unreadable, floor known", {"malformed": True, "floor": PUBLIC},
     (SENSITIVE, "claim", True)),
    ("one good, one not", {"header": ("public",), "body": "?"}, (SENSITIVE, "body", True)),
    # a header that is given twice
    ("twice the same", {"header": ("public", "PUBLIC")}, (PUBLIC, "header", False)),
    ("twice and differs", {"header": ("public", "internal")}, (SENSITIVE, "header", True)),
    ("twice, one strict", {"header": ("public", "sensitive")}, (SENSITIVE, "header", True)),
    # names of one's own, tenants
    ("own name", {"header": ("机密",), "rules": NAMED}, (SENSITIVE, "header", False)),
    ("tenant is open", {"tenant": "open-data", "rules": NAMED}, (PUBLIC, "default", False)),
    ("tenant is closed", {"tenant": "clinic", "rules": NAMED}, (SENSITIVE, "default", False)),
    ("a label beats the tenant's default",
     {"tenant": "clinic", "header": ("public",), "rules": NAMED}, (PUBLIC, "header", False)),
    ("a floor beats an open tenant", {"tenant": "open-data", "floor": INTERNAL, "rules": NAMED},
     (INTERNAL, "claim", False)),
    # the strict profile
    ("strict: no label", {"rules": STRICT}, (SENSITIVE, "default", False)),
    ("strict: text labelled internal", {"header": ("internal",), "rules": STRICT},
     (INTERNAL, "header", False)),
    ("strict: picture", {"images": True, "rules": STRICT}, (SENSITIVE, "default", False)),
    ("strict: picture labelled internal",
     {"images": True, "header": ("internal",), "rules": STRICT}, (SENSITIVE, "images", False)),
    ("strict: picture labelled public", {"images": True, "header": ("public",), "rules": STRICT},
     (PUBLIC, "header", False)),
    ("strict: picture labelled public and internal",
     {"images": True, "header": ("public",), "body": "internal", "rules": STRICT},
     (SENSITIVE, "images", False)),
    ("strict: a public floor is no label for the picture",
     {"images": True, "floor": PUBLIC, "rules": STRICT}, (SENSITIVE, "default", False)),
    ("standard: picture", {"images": True}, (INTERNAL, "default", False)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_the_label_that_counts(
    asked: dict[str, Any], expected: tuple[Sensitivity, str, bool]
) -> None:
    assert level_of(**asked) == expected


def test_the_note_names_the_source_and_what_follows() -> None:
    note = resolve(principal(), ("top-secret",), None, has_images=False, rules=PLAIN).note
    assert note == "the sensitivity label in the header is not known; it counts as sensitive"
    assert "top-secret" not in note  # a label may itself be a secret, and goes into a header


words = st.sampled_from(["public", "internal", "sensitive", "Sensitive ", "", "nonsense"])
bodies = words | st.none() | st.integers() | st.lists(words, max_size=2) | st.booleans()
rulebooks = st.sampled_from([PLAIN, STRICT, NAMED])
floors = st.none() | st.sampled_from(Sensitivity)


@given(
    floor=floors,
    header=st.lists(words, min_size=1, max_size=3),
    body=bodies,
    more_floor=st.sampled_from(Sensitivity),
    more_header=words,
    more_body=bodies.filter(lambda body: body is not None),
    images=st.booleans(),
    rules=rulebooks,
)
def test_a_further_source_never_lowers_the_level(
    floor: Sensitivity | None,
    header: list[str],
    body: object,
    more_floor: Sensitivity,
    more_header: str,
    more_body: object,
    images: bool,
    rules: LabelRules,
) -> None:
    """Of a request that has a label. One without takes its tenant's default, which a label is
    there to replace."""

    def level(
        floor: Sensitivity | None, header: list[str], body: object, images: bool, bad: bool = False
    ) -> Sensitivity:
        who = principal(sensitivity_floor=floor, label_malformed=bad)
        return resolve(who, header, body, has_images=images, rules=rules).level

    before = level(floor, header, body, images)
    assert level(floor, [*header, more_header], body, images) >= before
    assert level(floor, header, body, True) >= before
    assert level(floor, header, body, images, bad=True) is SENSITIVE
    if floor is None:
        assert level(more_floor, header, body, images) >= before
    if body is None:
        assert level(floor, header, more_body, images) >= before


@given(floor=st.sampled_from(Sensitivity), images=st.booleans(), rules=rulebooks)
def test_a_floor_raises_also_what_has_no_label(
    floor: Sensitivity, images: bool, rules: LabelRules
) -> None:
    without = level_of(images=images, rules=rules)[0]
    assert level_of(floor=floor, images=images, rules=rules)[0] is max(floor, without)


@given(st.sampled_from(Sensitivity), st.text(min_size=1))
def test_a_permit_is_for_one_request_and_never_for_the_strictest(
    level: Sensitivity, request_id: str
) -> None:
    given_permit = permit(facts(request_id=request_id, label=label(level)))
    assert (given_permit is None) == (level is SENSITIVE)
    if given_permit is not None:
        assert (given_permit.request_id, given_permit.level) == (request_id, level)
