"""`flasepformer export` and `flasepformer verify`: a model as an ONNX file, and the proof of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flasepformer.cli.console import print_message, print_result
from flasepformer.cli.published import AcceptLicence, obtain_published

if TYPE_CHECKING:
    from flasepformer.export import Proof, Speech

_Recording = Annotated[
    Path | None,
    typer.Option("--speech", help="Recording to compare on; by default one that comes with the package."),
]
_Mixtures = Annotated[
    Path | None,
    typer.Option(
        "--mixtures",
        help="Set to score the file and PyTorch on, too, as in `evaluate`: its first 100 mixtures.",
    ),
]
_Model = Annotated[
    str, typer.Argument(metavar="MODEL", help='"default", a name of `models`, or a checkpoint.')
]


def export(
    model: _Model,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write: .onnx, or .zip with --long.")],
    quantize: Annotated[
        str | None, typer.Option(help='Pack the weights: "fp16" halves the file, "int8" quarters it.')
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Export one step of a causal model.")] = False,
    block_ms: Annotated[
        float, typer.Option(min=1, max=10_000, help="Length of a step of --stream; whole steps of the model.")
    ] = 100.0,
    long: Annotated[
        bool, typer.Option("--long", help="Export a set of graphs that takes hours in bounded memory.")
    ] = False,
    speech: _Recording = None,
    mixtures: _Mixtures = None,
    accept_licence: AcceptLicence = False,
) -> None:
    """Export a model to one ONNX file for recordings of any length, proved to give PyTorch's numbers.

    The proof is written beside the file. A file that fails it is not left behind.

    Exit codes: 0 done, 1 the proof failed, 2 wrong usage, 3 the model cannot be had or exported, or the file
    cannot be written.
    """
    from flasepformer.export import QUANTIZATIONS, export_model

    if quantize is not None and quantize not in QUANTIZATIONS:
        raise typer.BadParameter(f"--quantize takes one of {', '.join(QUANTIZATIONS)}, got {quantize!r}")
    if mixtures is not None and stream:
        raise typer.BadParameter("a file for streams is not scored on --mixtures; leave them out")
    if long and stream:
        raise typer.BadParameter("--stream and --long are two different files; name one of them")
    if file.suffix != (suffix := ".zip" if long else ".onnx"):
        raise typer.BadParameter(f"the file to write is called {suffix}, got {str(file)!r}")
    with _explained(file):
        obtain_published(model, accept_licence=accept_licence)
        proof = export_model(
            model,
            file,
            quantization=quantize,  # type: ignore[arg-type]
            block_seconds=block_ms / 1000 if stream else None,
            long=long,
            speech=_speech(speech, model),
            mixtures=mixtures,
        )
    print_result(_summary(file, proof))


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File that `export` wrote.")],
    model: _Model,
    speech: _Recording = None,
    mixtures: _Mixtures = None,
    accept_licence: AcceptLicence = False,
) -> None:
    """Repeat the proof of an exported file on this computer.

    Exit codes: 0 it gives the model's numbers, 1 it does not, 2 wrong usage, 3 file or model cannot be read.
    """
    from flasepformer.export import verify_file

    with _explained(file):
        obtain_published(model, accept_licence=accept_licence)
        proof = verify_file(file, model, speech=_speech(speech, model), mixtures=mixtures)
    print_result(_summary(file, proof))


def _speech(path: Path | None, model: str) -> "Speech | None":
    from flasepformer.export import Speech
    from flasepformer.models import model_info

    return None if path is None else Speech.of(path, model_info(model).sample_rate)


def _summary(file: Path, proof: "Proof") -> str:
    worst = max(comparison.rms_difference for comparison in proof.comparisons)
    scored = ""
    if (quality := proof.quality) is not None:
        scored = f"; {quality.lost_db:.4f} of {quality.torch_db:.2f} dB SI-SNRi lost"
        scored += f" on {quality.n_mixtures} mixtures"
    if proof.caution:
        scored += f"; caution: {proof.caution}"
    return (
        f"{file}: {proof.model}, {proof.kind}, {proof.quantized or 'float32'}, {proof.file_megabytes} MB; "
        f"differs from PyTorch by {worst:.1e} of the RMS at most ({proof.limit:.0e} allowed){scored}"
    )


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    from flasepformer.errors import FlasepformerError
    from flasepformer.export import ProofFailed

    try:
        yield
    except ProofFailed as error:
        print_message(f"error: {error}")
        raise typer.Exit(1) from error
    except (FlasepformerError, ImportError) as error:
        print_message(f"error: {error}")
        raise typer.Exit(3) from error
    except OSError as error:
        print_message(f"error: {error.filename or file}: {error.strerror or error}")
        raise typer.Exit(3) from error
