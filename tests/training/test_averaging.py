import torch
from tests.training.conftest import SEPREFORMER

from flasepformer.models import SepReformer, save_model
from flasepformer.training.averaging import average_checkpoints


def test_weights_and_statistics_are_the_mean_and_counts_are_the_first(tmp_path):
    folders = [tmp_path / str(k) for k in range(3)]
    for k, folder in enumerate(folders):
        model = SepReformer(SEPREFORMER)
        for value in model.state_dict().values():
            value.fill_((1, 2, 6)[k])
        save_model(model, folder)
    for value in average_checkpoints(folders).state_dict().values():
        assert torch.equal(value, torch.full_like(value, 3 if value.is_floating_point() else 1))
