"""How good the weights are: on mixtures of unseen speakers, of others, and where talkers take turns."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flasepformer.data import Examples
from flasepformer.metrics import best_permutation, pairwise, si_snr, wrong_turns
from flasepformer.training.examples import FurtherValidation, n_valid_mixtures, take_example
from flasepformer.training.recipe import Recipe

DB_FOR_ALL_TURNS = 20.0
"""What a model whose every turn is on the wrong track loses in `Scores.total_db`: 5 % weigh a decibel."""


@dataclass(frozen=True)
class Scores:
    """Of a validation: means in dB, and a share; None where there is no such set."""

    si_snr_improvement_db: float
    si_snr_db: float
    held_out_si_snr_improvement_db: float | None = None
    wrong_turns: float | None = None

    @property
    def total_db(self) -> float:
        """One number by which weights are chosen, higher is better."""
        improvements = [self.si_snr_improvement_db]
        if self.held_out_si_snr_improvement_db is not None:
            improvements.append(self.held_out_si_snr_improvement_db)
        return sum(improvements) / len(improvements) - DB_FOR_ALL_TURNS * (self.wrong_turns or 0.0)

    def row(self) -> dict[str, float]:
        """Return the columns of the curve that are known."""
        columns = {
            "valid_si_snr_improvement_db": self.si_snr_improvement_db,
            "held_out_si_snr_improvement_db": self.held_out_si_snr_improvement_db,
            "wrong_turns_percent": None if self.wrong_turns is None else 100 * self.wrong_turns,
        }
        return {name: round(value, 3) for name, value in columns.items() if value is not None}


class Validation:
    """Scores networks on the same recordings each time, shared out over the processes of a run.

    Args:
        recipe: Of the run.
        examples: Mixtures of the validation split.
        further: What else it is validated on.
        accelerator: Of the run.
    """

    def __init__(
        self, recipe: Recipe, examples: Examples, further: FurtherValidation, accelerator: Any
    ) -> None:
        self.recipe, self.examples, self.further = recipe, examples, further
        self.accelerator = accelerator

    @torch.inference_mode()
    def scores(self, network: nn.Module) -> Scores:
        """Score a network, which is left in eval mode."""
        network.eval()
        n_mixtures = n_valid_mixtures(self.recipe, self.examples)
        improvement_db, si_snr_db = self._separation(network, self.examples, n_mixtures)
        held_out_db = None
        if self.further.held_out is not None:
            n_held_out = self.recipe.data.n_valid_mixtures
            held_out_db, _ = self._separation(network, self.further.held_out, n_held_out)
        return Scores(improvement_db, si_snr_db, held_out_db, self._wrong_turns(network))

    def estimates(self, network: nn.Module, mixture: Tensor) -> Tensor:
        """Separate one mixture (time,) into estimates (source, time)."""
        with self.accelerator.autocast():
            return network(mixture[None])[0].float()

    def _separation(self, network: nn.Module, examples: Examples, n_mixtures: int) -> tuple[float, float]:
        """Return mean SI-SNRi and SI-SNR in dB; a mixture with a silent source has no scores."""

        def score(index: int) -> Tensor | None:
            mixture, sources = (t.to(self.accelerator.device) for t in take_example(examples, index))
            if not (sources != sources[:, :1]).any(dim=-1).all():
                return None
            scores = pairwise(si_snr, self.estimates(network, mixture), sources)
            best = scores.gather(0, best_permutation(scores).unsqueeze(0)).mean()
            return torch.stack([best - si_snr(mixture.expand_as(sources), sources).mean(), best])

        total, n_scored = self._sum(score, n_mixtures, 2)
        if n_scored < n_mixtures and self.accelerator.is_main_process:
            silent = f"{n_mixtures - n_scored} of {n_mixtures} validation mixtures"
            print(f"{silent} have a silent source, and so no score", file=sys.stderr)
        if n_scored == 0:
            return math.nan, math.nan
        improvement_db, si_snr_db = (total / n_scored).tolist()
        return improvement_db, si_snr_db

    def _wrong_turns(self, network: nn.Module) -> float | None:
        """Return the share of the turns of all conversations that are on the wrong track."""
        sets, n_each = self.further.conversations, self.recipe.data.n_valid_conversations

        def score(index: int) -> Tensor:
            mixture, sources, turns = sets[index % len(sets)].example_with_turns(index // len(sets))
            estimates = self.estimates(network, mixture.to(self.accelerator.device)).cpu()
            return torch.tensor([wrong_turns(estimates, sources, turns) * len(turns), len(turns)])

        if not sets:
            return None
        (n_wrong, n_turns), _ = self._sum(score, n_each * len(sets), 2)
        return float(n_wrong / n_turns)

    def _sum(self, score: Callable[[int], Tensor | None], n_items: int, n_numbers: int) -> tuple[Tensor, int]:
        """Add up some numbers of every item, over all processes; return how many items had them, too."""
        total = torch.zeros(n_numbers + 1, device=self.accelerator.device)
        for index in range(self.accelerator.process_index, n_items, self.accelerator.num_processes):
            numbers = score(index)
            if numbers is not None:
                total[:-1] += numbers.to(total)
                total[-1] += 1
        total = self.accelerator.reduce(total)
        return total[:-1], round(float(total[-1]))
