"""Count the turns that models put on the wrong track, in conversations without overlap.

Usage: python recipes/turn_taking.py MODEL [MODEL ...] --speech MANIFEST.csv [--split test] [--count 100]

The same conversations for all models: two talkers take turns of 4 s with pauses of 0 to 10 s, for 45 s.
Chance is 50 % for very many turns, and about a third for the four to six turns of such a conversation.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from flasepformer.data import SpeechStore, read_utterances
from flasepformer.metrics import wrong_turns
from flasepformer.models import load_model
from flasepformer.training.examples import Conversation, draw_conversation


@torch.inference_mode()
def count_wrong(model: torch.nn.Module, conversations: Sequence[Conversation]) -> list[int]:
    """Return how many turns of each conversation are on the wrong track."""
    return [wrong_turns(model(mixture[None])[0], turns) for mixture, turns in conversations]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="+", help="names or checkpoints")
    parser.add_argument(
        "--speech", type=Path, required=True, help="CSV manifest of single talkers, or folder"
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=100, help="conversations")
    options = parser.parse_args(arguments)
    stores: dict[int, list[Conversation]] = {}
    for name in options.models:
        model = load_model(name).eval()
        rate = int(model.get_submodule("").sample_rate)  # type: ignore[arg-type]
        if rate not in stores:
            store = SpeechStore.load(read_utterances(options.speech, options.split), rate)
            stores[rate] = [draw_conversation(store, index) for index in range(options.count)]
        wrong = count_wrong(model, stores[rate])
        n_turns = [len(turns) for _, turns in stores[rate]]
        share = sum(wrong) / sum(n_turns)
        shares = [a / b for a, b in zip(wrong, n_turns, strict=True)]
        error = statistics.stdev(shares) / len(shares) ** 0.5
        right = sum(count == 0 for count in wrong)
        print(
            f"{name}: {sum(wrong)} of {sum(n_turns)} turns wrong, {share:.1%} (standard error {error:.1%}); "
            f"all turns right in {right} of {len(wrong)} conversations"
        )


if __name__ == "__main__":
    main()
