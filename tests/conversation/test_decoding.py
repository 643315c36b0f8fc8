import itertools

import numpy as np

from flasepformer.conversation.decoding import likeliest_path


def test_the_path_found_is_the_best_of_all():
    rng = np.random.default_rng(0)
    scores, change = rng.standard_normal((6, 3)), rng.standard_normal((3, 3))

    def total(path):
        steps = sum(change[a, b] for a, b in itertools.pairwise(path))
        return sum(scores[step, state] for step, state in enumerate(path)) + steps

    best = max(itertools.product(range(3), repeat=6), key=total)
    assert likeliest_path(scores, change).tolist() == list(best)


def test_every_step_may_have_changes_of_its_own():
    change = np.zeros((3, 2, 2))
    change[1] = [[0, -9], [-9, 0]]
    assert likeliest_path(np.array([[0, 0], [-1, 0], [0, -1.0]]), change).tolist() == [1, 1, 0]
