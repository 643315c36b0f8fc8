import subprocess
import sys

import pytest

import flasepformer

HEAVY = ("torch", "numpy", "soundfile", "rich", "tqdm")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--help"], "Separate people who talk at the same time"),
        (["--version"], f"flasepformer {flasepformer.__version__}\n"),
        (["separate", "--help"], "--overwrite"),
    ],
)
def test_help_and_version_load_nothing_heavy(words, expected):
    script = (
        "import atexit, sys\n"
        f"loaded = lambda: sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "atexit.register(lambda: print('loaded:', loaded(), file=sys.stderr))\n"
        "import runpy\n"
        f"sys.argv = ['flasepformer', *{words!r}]\n"
        "runpy.run_module('flasepformer', run_name='__main__')\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert expected in result.stdout
    assert result.stderr == "loaded: []\n"
