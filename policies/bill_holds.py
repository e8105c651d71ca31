"""What open holds really were, from what is left of the bill and of Ark's own count.

Two witnesses speak of a request that nobody settled. The count (GetInferenceUsage) has its tokens
in the sum of its hour; the bill has them, by kind, in the cell where it ended. Booked rows taken
off, what is left belongs to the open holds of the lane:

    one hold in an hour    its tokens are what the count has left: exactly. Should the bill differ,
                           the bill is wrong, and that is found when the cells are compared.
    several                each takes what is left of the bill where it can have ended; what they
                           take together must be what the count has left. If it is not, and only
                           one of them can make up for it, that one does; else nobody can say whose
                           item is wrong, and the holds stay open until somebody has looked.
    no count               what is left of the bill is taken as true.

A hold is only ever lowered: what would cost more than was held is not what it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policies.bill import (
    KINDS,
    NOTHING,
    PERIOD_MS,
    Finding,
    Lane,
    Open,
    Options,
    Place,
    Prices,
    Resolved,
    Sheet,
    Status,
    Three,
    distance,
    hour,
    minus,
    period,
    plus,
)


class Guess:
    """An open hold and the cell that it is thought to have ended in."""

    __slots__ = ("by", "hold", "place", "tokens")

    def __init__(self, hold: Open, place: Place, tokens: Three, by: str) -> None:
        self.hold, self.place, self.tokens, self.by = hold, place, tokens, by


class Holds:
    """The open holds of one lane."""

    def __init__(
        self, sheet: Sheet, counted: Mapping[int, Three], prices: Prices, options: Options
    ) -> None:
        """counted: tokens of this lane by the hour."""
        self._sheet = sheet
        self._counted = counted
        self._prices = prices
        self._options = options
        self.resolved: list[Resolved] = []
        self.disputed: list[Open] = []
        self.findings: list[Finding] = []
        self.disputed_nano = 0
        self.hours: set[int] = set()  # in which a hold may have ended

    def settle(self, lane: Lane, holds: Sequence[Open]) -> None:
        """Books what the holds were into the sheet: of every group that touches the time that is
        looked at."""
        for group in self._groups(holds):
            if not any(self._options.covers(at) for hold in group for at in self._periods(hold)):
                continue
            hours = {hour(at) for hold in group for at in self._periods(hold)}
            self.hours |= hours
            truth = self._truth(hours) if self._options.counted else None
            if truth is not None and len(group) == 1:
                guesses = self._by_count(group[0], truth)
            else:
                guesses = self._by_bill(group, truth)
            self._book(lane, group, guesses, truth)

    # ------------------------------------------------------------ where and when

    def _periods(self, hold: Open) -> list[int]:
        """The periods in which it can have ended, likeliest first."""
        slack_ms = self._options.slack_ms
        first, last = period(hold.from_ms - slack_ms), period(hold.to_ms + slack_ms)
        likely = period(hold.from_ms)
        return sorted(range(first, last + 1, PERIOD_MS), key=lambda at: (abs(at - likely), at))

    def _groups(self, holds: Sequence[Open]) -> list[list[Open]]:
        """Holds that share an hour stand together: the count cannot tell them apart."""
        groups: list[tuple[set[int], list[Open]]] = []
        for hold in sorted(holds, key=lambda hold: (hold.to_ms, hold.hold_id)):
            hours, members = {hour(at) for at in self._periods(hold)}, [hold]
            rest = []
            for known, others in groups:
                if known & hours:
                    hours |= known
                    members = others + members
                else:
                    rest.append((known, others))
            groups = [*rest, (hours, members)]
        return [members for _, members in groups]

    def _truth(self, hours: set[int]) -> Three | None:
        """What the count of these hours has left after all that is booked."""
        left = NOTHING
        for hour_ms in hours:
            left = plus(left, self._counted.get(hour_ms, NOTHING))
            for place, cell in self._sheet.items():
                if hour(place.period_ms) == hour_ms:
                    left = minus(left, cell.used)
        return left

    # ------------------------------------------------------------ what

    def _by_count(self, hold: Open, truth: Three) -> list[Guess] | None:
        """The only hold of its hour was what the count has left."""
        if truth == NOTHING:
            return [Guess(hold, Place(self._periods(hold)[0], ""), NOTHING, "nothing")]
        tier = self._prices.tier_of(hold, truth)
        if tier is None or not self._can_be(hold, tier, truth):
            return None
        places = [Place(at, tier) for at in self._periods(hold)]
        best = min(places, key=lambda place: distance(self._left(place), truth))
        return [Guess(hold, best, truth, "usage")]

    def _by_bill(self, group: Sequence[Open], truth: Three | None) -> list[Guess] | None:
        """Each hold takes what is left of the bill where it can have ended."""
        guesses: list[Guess] = []
        taken: dict[Place, list[Open]] = {}
        for hold in sorted(group, key=lambda hold: len(self._periods(hold))):
            place = self._best_place(hold, taken)
            if place is None:
                guesses.append(Guess(hold, Place(self._periods(hold)[0], ""), NOTHING, "nothing"))
            else:
                taken.setdefault(place, []).append(hold)
        for place, sharers in taken.items():
            guesses += self._share(place, sharers)
        self._mark_exchangeable(guesses)
        wrong = [guess for guess in guesses if not self._holds_water(guess)]
        if truth is None:
            return None if wrong else guesses
        total = NOTHING
        for guess in guesses:
            total = plus(total, guess.tokens)
        gap = minus(truth, total)
        if gap == NOTHING:
            return None if wrong else guesses
        return self._repaired(guesses, wrong, gap)

    def _best_place(self, hold: Open, taken: Mapping[Place, list[Open]]) -> Place | None:
        """The likeliest cell that has something left that a request can be: input, at least."""
        left = [
            Place(at, place.tier)
            for at in self._periods(hold)
            for place in sorted(self._sheet)
            if place.period_ms == at and max(self._left(place)) > 0 and min(self._left(place)) >= 0
        ]
        free = [place for place in left if place not in taken]
        for places in (free, left):
            fit = [place for place in places if self._can_be(hold, place.tier, self._left(place))]
            if fit or places:
                return (fit or places)[0]
        return None

    def _share(self, place: Place, sharers: Sequence[Open]) -> list[Guess]:
        """One cell among the holds that ended in it, by what was held for each."""
        left, weight = self._left(place), sum(hold.posted_nano for hold in sharers)
        by = "bill" if len(sharers) == 1 else "share"
        guesses = []
        for hold in sharers:
            part = [n * hold.posted_nano // weight if weight else 0 for n in left]
            tokens = (part[0], part[1], part[2]) if hold is not sharers[-1] else left
            left, weight = minus(left, tokens), weight - hold.posted_nano
            guesses.append(Guess(hold, place, tokens, by))
        return guesses

    def _mark_exchangeable(self, guesses: Sequence[Guess]) -> None:
        """Two holds that can have been each other: only what they were together is known."""
        for i, one in enumerate(guesses):
            for other in guesses[i + 1 :]:
                if self._may_be(one.hold, other) and self._may_be(other.hold, one):
                    one.by = other.by = "share"

    def _may_be(self, hold: Open, guess: Guess) -> bool:
        if guess.tokens == NOTHING:
            return True
        near = guess.place.period_ms in self._periods(hold)
        return near and self._can_be(hold, guess.place.tier, guess.tokens)

    def _repaired(
        self, guesses: list[Guess], wrong: Sequence[Guess], gap: Three
    ) -> list[Guess] | None:
        """One item of the bill is wrong. If only one hold can make up for it, it is that one's."""
        able = []
        for guess in wrong or guesses:
            tokens = plus(guess.tokens, gap)
            tier = self._prices.tier_of(guess.hold, tokens)
            place = Place(guess.place.period_ms, tier or "")
            better = Guess(guess.hold, place, tokens, "usage")
            if tier is not None and self._holds_water(better):
                able.append((guess, better))
        if len(able) != 1 or any(guess is not able[0][0] for guess in wrong):
            return None
        broken, better = able[0]
        return [better if guess is broken else guess for guess in guesses]

    # ------------------------------------------------------------ whether

    def _left(self, place: Place) -> Three:
        cell = self._sheet.get(place)
        return cell.left if cell is not None else NOTHING

    def _can_be(self, hold: Open, tier: str, tokens: Three) -> bool:
        """Whether a hold can have been that: a prompt, the tier of its size, and no more money
        than was held."""
        if min(tokens) < 0 or tokens[0] + tokens[1] == 0:
            return False
        nano = self._prices.nano(hold, tier, tokens)
        return (
            nano is not None
            and sum(nano) <= hold.posted_nano
            and self._prices.tier_of(hold, tokens) == tier
        )

    def _holds_water(self, guess: Guess) -> bool:
        if guess.tokens == NOTHING:
            return True
        if guess.by == "share":  # a part of a sum: neither its size nor its tier is its own
            nano = self._prices.nano(guess.hold, guess.place.tier, guess.tokens)
            return nano is not None and sum(nano) <= guess.hold.posted_nano
        return self._can_be(guess.hold, guess.place.tier, guess.tokens)

    def _book(
        self, lane: Lane, group: Sequence[Open], guesses: list[Guess] | None, truth: Three | None
    ) -> None:
        if guesses is None:
            self._dispute(lane, group, truth)
            return
        for guess in guesses:
            nano = self._prices.nano(guess.hold, guess.place.tier, guess.tokens) or NOTHING
            if guess.tokens != NOTHING:
                self._sheet[guess.place].book(guess.tokens, nano)
            self.resolved.append(
                Resolved(
                    hold=guess.hold,
                    period_ms=guess.place.period_ms,
                    tier=guess.place.tier,
                    tokens=guess.tokens,
                    nano=nano,
                    by=guess.by,
                )
            )

    def _dispute(self, lane: Lane, group: Sequence[Open], truth: Three | None) -> None:
        """Nobody can say what the holds were. What is left where they may have ended is set aside,
        and what the two witnesses say of it is the finding."""
        self.disputed += group
        periods = {at for hold in group for at in self._periods(hold)}
        aside, aside_nano = NOTHING, NOTHING
        for place in [place for place in self._sheet if place.period_ms in periods]:
            cell = self._sheet[place]
            left = cell.left
            left_nano = minus(
                (cell.billed_nano[0], cell.billed_nano[1], cell.billed_nano[2]),
                (cell.booked_nano[0], cell.booked_nano[1], cell.booked_nano[2]),
            )
            cell.book(left, left_nano)
            aside = plus(aside, left)
            if self._options.covers(place.period_ms):
                aside_nano = plus(aside_nano, left_nano)
        self.disputed_nano += sum(aside_nano)
        for i, kind in enumerate(KINDS):
            if truth is None or truth[i] != aside[i]:
                self.findings.append(
                    Finding(
                        status=Status.DISPUTED,
                        period_ms=min(hour(at) for at in periods),
                        lane=lane,
                        tier="",
                        kind=kind,
                        booked_tokens=0 if truth is None else truth[i],
                        billed_tokens=aside[i],
                        booked_nano=0,
                        billed_nano=0,
                    )
                )
