"""Where the output of an input goes, and of what kind it is."""

from dataclasses import replace
from pathlib import Path

from emdn_deploy import writers
from emdn_deploy.options import DenoiseOptions
from emdn_deploy.readers import is_hdf5, is_pattern
from emdn_models.errors import OutputError


def target_of(source: Path, options: DenoiseOptions) -> tuple[Path, str]:
    """Return the output's path and its writer's module.

    Raises
    ------
    OutputError
        If ``--to`` and the output's suffix contradict each other, no writer has
        that suffix, or it cannot store what is asked for.
    """
    if options.output is not None and options.output.is_dir():
        raise OutputError(f"{options.output}: is a folder; give it by --out-dir, or a file's name")
    whole = options.frames is None and is_hdf5(source)
    target = options.output or _beside(source, options, whole=whole)
    module = writers.module_for(target, mirror=whole)
    if options.to is not None:
        wanted = writers.module_for(Path(f"a.{options.to}"), mirror=whole)
        if wanted != module:
            raise OutputError(f"{target}: is no name for --to {options.to}; leave one of them out")
        if options.to == "hspy" and source.suffix.lower() != ".hspy":
            module = "combined"
    writers.check(target, module, writers.Storage(options.dtype, options.compress))
    return target, module


def _beside(source: Path, options: DenoiseOptions, *, whole: bool) -> Path:
    """Return ``<stem>_denoised.<kind>`` in the output folder or beside the input."""
    if is_pattern(source):
        # The folder that the pattern searches gives the name.
        fixed = [part for part in source.parts if not any(mark in part for mark in "*?[")]
        source = Path(*fixed[: len(fixed)]) if fixed else Path("frames")
        stem = source.resolve().name
    else:
        stem = source.resolve().name if source.is_dir() else source.stem
    if options.to is not None:
        suffix = f".{options.to}"
    elif whole:
        known = source.suffix.lower() in writers.WRITERS["combined"]
        suffix = source.suffix if known else ".h5"
    else:
        suffix = ".hspy"
    folder = options.out_dir if options.out_dir is not None else source.parent
    return folder / f"{stem}{options.suffix}{suffix}"


def each(sources: list[Path], options: DenoiseOptions) -> list[tuple[Path, DenoiseOptions]]:
    """Pair every input with its options and check that no two share an output.

    Raises
    ------
    OutputError
        If they do.
    """
    pairs, taken = [], dict[Path, Path]()
    for source in sources:
        target, module = target_of(source, options)
        beside = writers.sigma_file(target, module) if options.sigma else None
        for written in (target, beside or target):
            other = taken.setdefault(written.resolve(), source)
            if other != source:
                raise OutputError(
                    f"{source} and {other} would both be written to {written}; "
                    "denoise them in two runs with different --out-dir or --suffix"
                )
        if target.exists() and any(one.exists() and target.samefile(one) for one in sources):
            raise OutputError(f"{target}: is the input itself; emdn never overwrites it, use -o")
        pairs.append((source, replace(options, output=target)))
    return pairs
