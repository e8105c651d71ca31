"""Which sites a request may ever touch, and the only maker of a CloudPermit.

Every source of a label is read here, and the strictest wins. What cannot be read counts as the
strictest: a typing error in a label must never send a document out of the house.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from policies.types import STRICTEST, CloudPermit, Facts, Label, Principal, Sensitivity, Value

_CONTRADICTION = (
    f"the sensitivity header was given twice and differs; it counts as {STRICTEST.name.lower()}"
)
NAMES: Mapping[str, Sensitivity] = {level.name.lower(): level for level in Sensitivity}


class LabelRules(Value, frozen=True, kw_only=True):
    """How labels are read.

    names:          spelling -> level (lower case); the order of the levels is fixed
    default:        level of a request that carries no label
    tenant_default: the same for single tenants
    image_default:  least level of a request with pictures, unless its label says public, which
                    whoever set it did with the picture in view (None: pictures are as text)
    """

    names: Mapping[str, Sensitivity] = msgspec.field(default_factory=lambda: NAMES)
    default: Sensitivity = Sensitivity.INTERNAL
    tenant_default: Mapping[str, Sensitivity] = {}
    image_default: Sensitivity | None = None


def resolve(
    principal: Principal,
    header: Sequence[str],
    body: object,
    *,
    has_images: bool,
    rules: LabelRules,
) -> Label:
    """The label that counts.

    header: all values of x-yuzui-sensitivity, as received (several contradict each other).
    body:   the value of metadata.sensitivity; None when absent, any JSON value otherwise.
    """
    found: list[Label] = []
    if principal.label_malformed:
        found.append(Label(level=STRICTEST, source="claim", note=_unknown("the token's claim")))
    elif principal.sensitivity_floor is not None:
        found.append(Label(level=principal.sensitivity_floor, source="claim"))
    given = [_read(value, "header", rules) for value in header]
    if len({label.level for label in given}) > 1:
        given.append(Label(level=STRICTEST, source="header", note=_CONTRADICTION))
    if body is not None:
        given.append(_read(body, "body", rules))
    called_public = bool(given) and all(label.level is Sensitivity.PUBLIC for label in given)
    found += given or [_default(principal.tenant, rules)]
    if has_images and rules.image_default is not None and not called_public:
        found.append(Label(level=rules.image_default, source="images"))
    return max(found, key=lambda label: (label.level, label.note is not None))


def permit(facts: Facts) -> CloudPermit | None:
    """Leave to send this request to the cloud, or None. No other code makes a CloudPermit."""
    if facts.label.level >= Sensitivity.SENSITIVE:
        return None
    return CloudPermit(request_id=facts.request_id, level=facts.label.level)


def _read(value: object, source: str, rules: LabelRules) -> Label:
    level = rules.names.get(value.strip().lower()) if isinstance(value, str) else None
    if level is None:
        return Label(level=STRICTEST, source=source, note=_unknown(f"the {source}"))
    return Label(level=level, source=source)


def _default(tenant: str, rules: LabelRules) -> Label:
    return Label(level=rules.tenant_default.get(tenant, rules.default), source="default")


def _unknown(where: str) -> str:
    return f"the sensitivity label in {where} is not known; it counts as {STRICTEST.name.lower()}"
