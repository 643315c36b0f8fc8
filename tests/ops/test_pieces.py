import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flasepformer.ops import map_pieces
from flasepformer.ops.pieces import PIECE_LENGTH


@pytest.mark.parametrize("n_frames", [10, PIECE_LENGTH, PIECE_LENGTH + 1, 2 * PIECE_LENGTH + 7])
def test_pieces_give_the_same_as_the_whole(n_frames):
    conv = nn.Conv1d(3, 5, 9, padding=4)
    x = torch.randn(2, n_frames, 3)
    with torch.no_grad():
        assert_close(map_pieces(lambda piece: conv(piece.mT).mT, x, halo=4), conv(x.mT).mT)


def test_no_piece_is_longer_than_it_may_be():
    lengths = []

    def note(piece):
        lengths.append(piece.shape[1])
        return piece

    with torch.no_grad():
        map_pieces(note, torch.zeros(1, 2 * PIECE_LENGTH + 1, 1), halo=3)
    assert lengths == [PIECE_LENGTH + 3, PIECE_LENGTH + 4, 4]


def test_gradients_flow_through_the_whole():
    x = torch.randn(1, PIECE_LENGTH + 5, 2, requires_grad=True)
    map_pieces(lambda piece: 3 * piece, x).sum().backward()
    assert (x.grad == 3).all()


def test_pieces_keep_a_wide_result_in_the_cache():
    lengths = []

    def note(piece):
        lengths.append(piece.shape[1])
        return piece

    with torch.inference_mode():
        result = map_pieces(note, torch.arange(5000.0)[None, :, None], halo=1, width=512)
    assert result.flatten().tolist() == list(range(5000))
    assert lengths == [1024 + 1, *[1024 + 2] * 3, 5000 - 4 * 1024 + 1]  # 2^21 bytes of 512 float32 numbers
