import pytest

from flasepformer.benchmark import PEERS, PeerError, peer_cases
from flasepformer.benchmark.peers import build_peer

SETTINGS = {"device": "cpu", "precision": "float32", "threads": 1}


def test_an_unknown_peer_is_answered_with_the_names():
    with pytest.raises(
        PeerError, match=r"no peer is called 'nobody'; the peers are release-fla-sepreformer-t,"
    ):
        peer_cases(["nobody"], [1.0], **SETTINGS)


def test_a_peer_that_is_not_installed_names_package_and_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("flasepformer.benchmark.peers.find_spec", lambda name: None)
    with pytest.raises(PeerError, match=r"mossformer2 needs modelscope, .*flasepformer\[peers\]"):
        peer_cases(["mossformer2"], [1.0], **SETTINGS)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "n_parameters"),
    [
        ("release-fla-sepreformer-b", 14_693_696),
        ("release-fla-tflocoformer-m", 15_071_252),
        ("mossformer2", 55_735_410),
        ("speechbrain-sepformer", 25_679_361),
        ("asteroid-convtasnet", 5_050_545),
        ("asteroid-dprnn", 3_652_865),
    ],
)
def test_a_peer_has_its_published_size_and_separates(name, n_parameters):
    torch = pytest.importorskip("torch")
    for package in PEERS[name].packages:
        pytest.importorskip(package, exc_type=ImportError)
    model = build_peer(name).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == n_parameters
    with torch.inference_mode():
        assert model(torch.randn(1, 1600)).numel() == 3200
