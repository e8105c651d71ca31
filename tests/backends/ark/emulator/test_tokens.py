from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.ark.emulator.tokens import PrefixCache, count, pieces, prefix_hashes


@given(st.text())
def test_pieces_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text
    assert count(text) <= max(1, len(text.encode("utf-8", "surrogatepass")))


def test_the_estimate_is_near_what_is_usual() -> None:
    assert count("你好世界") == 2
    assert count("Hello there") == 2
    assert count("12345") == 2
    assert count("") == 0


@given(st.lists(st.tuples(st.text(max_size=300), st.integers(0, 300)), max_size=6))
def test_a_longer_prompt_begins_with_the_prefixes_of_the_shorter(
    parts: list[tuple[str, int]],
) -> None:
    short, short_tokens = prefix_hashes(parts[:-1])
    long, long_tokens = prefix_hashes(parts)
    assert long[: len(short)] == short
    assert len(long) == long_tokens // 128
    assert short_tokens <= long_tokens


def test_a_prefix_is_known_the_second_time_and_forgotten_in_time() -> None:
    now = 0.0
    cache = PrefixCache(blocks_max=100, ttl_s=300, clock=lambda: now)
    hashes, _ = prefix_hashes([("a word " * 1500, 0)])
    assert cache.hit("a", hashes, prefix_tokens_min=1024) == 0
    assert cache.hit("b", hashes, prefix_tokens_min=1024) == 0  # another account or model
    assert cache.hit("a", hashes, prefix_tokens_min=1024) == len(hashes) * 128
    assert cache.hit("a", hashes[:7], prefix_tokens_min=1024) == 0  # 896 tokens are too few
    now = 301.0
    assert cache.hit("a", hashes, prefix_tokens_min=1024) == 0


def test_the_cache_is_bounded() -> None:
    cache = PrefixCache(blocks_max=8, ttl_s=300, clock=lambda: 0.0)
    for word in ("one ", "two "):
        hashes, _ = prefix_hashes([(word * 1100, 0)])
        cache.hit("a", hashes, prefix_tokens_min=1)
    hashes, _ = prefix_hashes([("one " * 1100, 0)])
    assert cache.hit("a", hashes, prefix_tokens_min=1) == 0
