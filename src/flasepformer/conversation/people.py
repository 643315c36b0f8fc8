"""How many people talk, and who is who: voices are joined while one person explains them better than two.

The model is that of two covariances: everybody's voice lies around a mean of all voices, and every stretch of
somebody's speech around that (Ioffe, "Probabilistic linear discriminant analysis", ECCV 2006; Brümmer and de
Villiers, "The speaker partitioning problem", Odyssey 2010). So the evidence for any division of stretches
among people is a number, and the number of people is that of the best division that was met.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

WEIGHTS = "pretrained/conversation/people.safetensors"

MAX_PEOPLE = 10
COUNTS = 0.75
"""How much of a stretch's evidence counts: stretches of one person differ more than Gaussian noise would."""
VARIES = 0.1
"""Variance of somebody's voice that no length of speech takes away: people have more than one way to talk."""
NEW_PERSON, OF_MANY, FEW_TURNS = -3.0, -2.0, 10
"""Log odds that another person has, before anything is heard, with so few turns; and what is added for every
e-fold of them: the division is the best of many, and of more turns more look good by chance."""
AT_ONCE = 600
"""Turns that are joined at once; of more, neighbours in time first, so that memory is bounded."""

MOST_SECONDS = 6.0
"""A longer stretch counts no more than one so long, of which it is listened to."""

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class VoiceSpace:
    """Where a stretch of 2 s differs from the voice of its talker by 1 in every direction, at random."""

    mean: Array
    """(n_dims,) of all voices."""
    transform: Array
    """(n_dims, n): to this space."""
    between: Array
    """(n,): variance of people."""

    def observed(self, voice: NDArray[np.floating], seconds: float, counts: float = COUNTS) -> Array:
        """Return what a stretch says of its talker (..., n + 1): its voice by a weight, and the weight.

        Sums of these are all that is remembered of many stretches. How much a voice counts grows with the
        length of the stretch, and so does the distance of its voice from the mean of all: both were measured.

        Args:
            voice: (..., n_dims).
            seconds: Length of the stretch.
            counts: Share of the evidence that counts.
        """
        seconds = min(seconds, MOST_SECONDS)
        weight = counts * 0.4 * seconds**2 / (seconds + 0.2)
        place = (voice - self.mean) @ self.transform / (1.3 * seconds / (0.6 + seconds))
        return np.concatenate([weight * place, np.full((*place.shape[:-1], 1), weight)], -1)

    def evidence(self, observed: Array) -> Array:
        """Return the log probability (...) of what was observed (..., n + 1) of one person.

        What depends on the stretches alone, and not on who said which, is left out; of nothing it is 0.
        """
        grown = 1 + observed[..., -1:] * self.between
        return 0.5 * (observed[..., :-1] ** 2 * self.between / grown - np.log(grown)).sum(-1)

    def gain(self, one: Array, other: Array) -> Array:
        """Return the log odds (...) that two observations (..., n + 1) are of one person, not of two."""
        one, other = settled(one), settled(other)
        return self.evidence(one + other) - self.evidence(one) - self.evidence(other)


def settled(observed: Array) -> Array:
    """Return what was observed of a person (..., n + 1), by no more weight than it deserves; see `VARIES`.

    >>> settled(np.array([20.0, 10.0])), settled(np.array([2e6, 1e6])).round(3)
    (array([10.,  5.]), array([20., 10.]))
    """
    return observed / (1 + VARIES * observed[..., -1:])


@cache
def load_voice_space() -> VoiceSpace:
    """Load what `flasepformer.training.people` has measured on the voices of the package's network."""
    with as_file(files("flasepformer") / WEIGHTS) as path:
        stored = {name: value.astype(np.float64) for name, value in load_file(path).items()}
    return VoiceSpace(**stored)


def join_turns(
    space: VoiceSpace, observed: Array, odds: Array, is_near: NDArray[np.bool_]
) -> NDArray[np.intp]:
    """Join stretches with their neighbours in time that are likely the same person's.

    Args:
        space: See there.
        observed: (stretch, n + 1), in order of time.
        odds: (stretch,): log odds that it is said by the same person as the one before, whatever the voices
            are; that of the first is ignored.
        is_near: (stretch,): whether it may be joined to the one before.

    Returns:
        (stretch,): number of the turn, from 0.
    """
    n = len(observed)
    observed = observed.copy()
    odds = np.where(is_near, odds, -np.inf)
    before = np.arange(n) - 1  # of those that are left, each is the first of its turn
    after = np.arange(n) + 1
    gains = np.full(n, -np.inf)  # that each is joined to the one before it
    gains[1:] = space.gain(observed[:-1], observed[1:]) + odds[1:]
    is_first = np.ones(n, bool)
    while n and gains.max() > 0:
        joined = int(gains.argmax())
        into, then = before[joined], after[joined]
        observed[into] += observed[joined]
        is_first[joined], gains[joined], after[into] = False, -np.inf, then
        if into > 0:
            gains[into] = space.gain(observed[before[into]], observed[into]) + odds[into]
        if then < n:
            before[then] = into
            gains[then] = space.gain(observed[into], observed[then]) + odds[then]
    return np.cumsum(is_first) - 1


def join_people(space: VoiceSpace, observed: Array, links: Array) -> tuple[NDArray[np.intp], Array]:
    """Join turns two by two, always those that are the likeliest to be one person's, until all are one.

    Args:
        space: See there.
        observed: (turn, n + 1).
        links: (turn, turn): log odds that two are one person's, whatever the voices are; symmetric.

    Returns:
        (turn - 1, 2): the turns by which both parts of each join are known, the first of each and the lesser
        first; and (turn - 1,) the log odds of each.
    """
    n = len(observed)
    observed, links, gains = observed.copy(), links.copy(), np.full((n, n), -np.inf)
    for one in range(n - 1):
        gains[one, one + 1 :] = space.gain(observed[one], observed[one + 1 :]) + links[one, one + 1 :]
    left = np.ones(n, bool)
    joins, odds = np.zeros((max(n - 1, 0), 2), np.intp), np.zeros(max(n - 1, 0))
    for step in range(n - 1):
        one, other = divmod(int(gains.argmax()), n)
        joins[step], odds[step] = (one, other), gains[one, other]
        observed[one] += observed[other]
        links[one] += links[other]
        links[:, one] += links[:, other]
        left[other] = False
        gains[other], gains[:, other] = -np.inf, -np.inf
        rest = np.flatnonzero(left & (np.arange(n) != one))
        found = space.gain(observed[one], observed[rest]) + links[one, rest]
        gains[np.minimum(one, rest), np.maximum(one, rest)] = found
    return joins, odds


def best_count(odds: Array, most: int = MAX_PEOPLE) -> int:
    """Return how many people explain all turns best, from the log odds of every join (join,), in their order.

    >>> best_count(np.array([5.0, 4.0, -9.0, -30.0])), best_count(np.array([5.0, 4.0, 3.0]))
    (3, 1)
    """
    prior = NEW_PERSON + OF_MANY * np.log(max((len(odds) + 1) / FEW_TURNS, 1.0))
    split = np.concatenate([[0.0], np.cumsum(prior - odds[::-1])])[:most]
    return int(split.argmax()) + 1


def divided(joins: NDArray[np.intp], n: int, n_people: int) -> NDArray[np.intp]:
    """Return the person (turn,) of each of `n` turns, numbered by first turn, if only so many are left.

    >>> divided(np.array([[0, 2], [1, 3], [0, 1]]), 4, 2)
    array([0, 1, 0, 1])
    """
    of = np.arange(n)
    for one, other in joins[: max(n - n_people, 0)]:
        of[of == other] = one
    return np.unique(of, return_inverse=True)[1]


def divide(
    space: VoiceSpace,
    observed: Array,
    odds: Array,
    is_near: NDArray[np.bool_],
    n_people: int | None = None,
) -> NDArray[np.intp]:
    """Divide stretches among people.

    Args:
        space: See there.
        observed: (stretch, n + 1), in order of time.
        odds: See `join_turns`.
        is_near: See `join_turns`.
        n_people: How many there are; None finds out. Fewer are found if there are fewer stretches.

    Returns:
        (stretch,): who talks, from 0 on, in the order of their first words.
    """
    of = join_turns(space, observed, odds, is_near)
    while True:
        turns = np.zeros((int(of.max(initial=-1)) + 1, observed.shape[-1]))
        np.add.at(turns, of, observed)
        if len(turns) <= AT_ONCE:
            break
        of = _joined_nearby(space, turns, of, odds)[of]
    if not len(turns):
        return of
    joins, all_odds = join_people(space, turns, _links(of, odds, np.arange(len(turns))))
    return divided(joins, len(turns), n_people or best_count(all_odds))[of]


def _links(of: NDArray[np.intp], odds: Array, turns: NDArray[np.intp]) -> Array:
    """Return the log odds (turn, turn) that some turns, which are consecutive numbers, are one person's."""
    links = np.zeros((len(turns), len(turns)))
    before, after = of[:-1] - turns[0], of[1:] - turns[0]
    inside = (before != after) & (np.minimum(before, after) >= 0) & (np.maximum(before, after) < len(turns))
    np.add.at(links, (before[inside], after[inside]), odds[1:][inside])
    return links + links.T


def _joined_nearby(space: VoiceSpace, turns: Array, of: NDArray[np.intp], odds: Array) -> NDArray[np.intp]:
    """Return fewer turns (turn,): the people of each part of a recording, rather too many than too few."""
    joined, n_found = np.empty(len(turns), np.intp), 0
    for part in np.array_split(np.arange(len(turns)), -(-2 * len(turns) // AT_ONCE)):
        joins, _ = join_people(space, turns[part], _links(of, odds, part))
        n_people = min(2 * MAX_PEOPLE, max(len(part) // 2, 1))
        joined[part] = n_found + divided(joins, len(part), n_people)
        n_found = int(joined[part].max()) + 1
    return joined
