from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from policies import affinity
from policies.affinity import BOUNDARIES_MAX, SAMPLED_ABOVE_CHARS
from policies.plan import plan
from policies.types import Plan, Prefix, Sensitivity
from tests.policies.builders import NOW_S, facts, rules, snapshot, worker


def keys(*texts: str, salted: str = "s") -> tuple[Prefix, ...]:
    return affinity.prefixes(salted, [(affinity.fingerprint(t), 24) for t in texts])


def test_a_conversation_that_goes_on_shares_its_beginning() -> None:
    first, second = keys("system", "question"), keys("system", "question", "answer", "more")
    assert second[: len(first)] == first
    known = {prefix.key for prefix in first}
    assert affinity.held_tokens(second, known) == 48
    assert affinity.held_tokens(keys("system", "another"), known) == 16
    assert affinity.held_tokens(keys("other", "question"), known) == 0


def test_what_is_shorter_than_a_block_is_held_by_nobody() -> None:
    """Or every short question asked twice would draw the next one to the same worker."""
    short = affinity.prefixes("s", [(affinity.fingerprint("hi"), affinity.BLOCK_TOKENS - 1)])
    assert affinity.held_tokens(short, {short[0].key}) == 0


def test_tenants_and_labels_share_no_key() -> None:
    salts = {
        affinity.salt(tenant, level) for tenant in ("a", "b", "a\0", "") for level in Sensitivity
    }
    assert len(salts) == 12
    one, other = keys("system", salted=min(salts)), keys("system", salted=max(salts))
    assert one[0].key != other[0].key


def test_a_long_conversation_keeps_its_last_boundaries() -> None:
    found = keys(*map(str, range(BOUNDARIES_MAX + 9)))
    assert len(found) == BOUNDARIES_MAX
    assert found[-1].tokens == 24 * (BOUNDARIES_MAX + 9)


@given(st.text(max_size=50), st.text(max_size=50))
def test_different_short_texts_differ(one: str, other: str) -> None:
    assert (affinity.fingerprint(one) == affinity.fingerprint(other)) == (one == other)


def test_pictures_of_the_same_size_differ() -> None:
    body = "A" * (4 * SAMPLED_ABOVE_CHARS)
    changed = body[:-40] + "B" * 40
    assert affinity.fingerprint(body) != affinity.fingerprint(changed)
    assert affinity.fingerprint(body) != affinity.fingerprint(body + "A")
    assert affinity.fingerprint(body) == affinity.fingerprint("A" * (4 * SAMPLED_ABOVE_CHARS))


def test_a_picture_that_was_seen_saves_its_encoding() -> None:
    assert affinity.saved_tokens(30, 0, 0, 0) == 30
    assert affinity.saved_tokens(0, 1, 2, 2_000) == 500
    assert affinity.saved_tokens(2_100, 1, 2, 2_000) == 2_100


LONG = facts(prompt_tokens_likely=8_000, prompt_tokens_max=8_000)


def first_choice(*workers: object, seeds: int = 60) -> set[str]:
    found = set()
    for seed in range(seeds):
        made = plan(LONG, snapshot(*workers), rules(), NOW_S, Random(seed))  # type: ignore[arg-type]
        assert isinstance(made, Plan)
        found.add(made.attempts[0].target)
    return found


def test_who_holds_the_prompt_is_asked_whoever_is_drawn() -> None:
    """Of six, two are drawn; the one that need not read 8,000 tokens is compared in any case."""
    others = [worker(f"w{n}", running=1) for n in range(5)]
    assert first_choice(*others, worker("w9", running=1, held_tokens=7_900)) == {"w9"}
    assert len(first_choice(*others)) > 2  # the positive control


def test_but_not_when_it_is_not_worth_it() -> None:
    """It would save two seconds of reading and cost many of waiting."""
    busy = worker("w9", held_tokens=4_000, running=8, in_flight=8, in_flight_output_tokens=16_000)
    assert "w9" not in first_choice(worker("w1"), worker("w2"), busy)
    assert first_choice(worker("w1"), replace(worker("w9"), held_tokens=4_000)) == {"w9"}
