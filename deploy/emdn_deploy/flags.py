"""The flags that several commands share."""

from typing import Annotated

import typer

from emdn_deploy.options import Device, Precision

Dataset = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="The frames inside the file (TIFF, DM: a number)."),
]
Axes = Annotated[
    str | None,
    typer.Option(metavar="LETTERS", help="One letter per stored axis, y and x the frame: tyx."),
]
Model = Annotated[
    str | None, typer.Option(metavar="NAME|FILE.onnx", help="See: emdn-deploy models.")
]
On = Annotated[Device, typer.Option(help="auto says what it took; the others never fall back.")]
Numbers = Annotated[
    Precision, typer.Option(help="What it computes with: a variant (see models), or tf32 on CUDA.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; default: all that are allowed.")
]
Gain = Annotated[float | None, typer.Option(help="Units per electron; measured if not given.")]
Offset = Annotated[
    float | None, typer.Option(help="Reading without electrons; measured if not given.")
]
Selected = Annotated[
    str | None, typer.Option(metavar="A:B:STEP,...", help="Only these frames, counted from 0.")
]
