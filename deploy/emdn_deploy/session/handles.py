"""Open an onnxruntime session, and refuse one that computes elsewhere than asked for."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import onnxruntime as ort

from emdn_deploy.session.complaints import first_line
from emdn_deploy.session.providers import NAMES, PROVIDERS, Place, options_of
from emdn_models.errors import DeviceError, ModelError
from emdn_models.pretrained import sha256

_FATAL = 4  # onnxruntime's own log lines would follow ours
_ASSIGNMENT = "session.record_ep_graph_assignment_info"
# What onnxruntime computes sizes by, on the CPU on purpose.
_SIZES = {
    "Add", "Cast", "Ceil", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Floor",
    "Gather", "Identity", "Max", "Min", "Mod", "Mul", "Neg", "Range", "ReduceProd", "Reshape",
    "Shape", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where",
}  # fmt: skip
_log = logging.getLogger(__name__)


def open_handle(
    path: Path, device: Place, threads: int, precision: str = "fp32", *, graphs: bool = False
) -> ort.InferenceSession:
    """Open a model.

    Parameters
    ----------
    graphs
        Whether CUDA graphs are wanted; a model that cannot have them is opened without.

    Raises
    ------
    ModelError
        If the file cannot be loaded.
    DeviceError
        If another device would do the work.
    """
    options = options_for(device, threads)
    digest = sha256(path) if device == "tensorrt" else ""
    providers = options_of(device, precision, digest, graphs=graphs)
    try:
        handle = load(path, options, providers)
    except ModelError as error:
        if graphs and "graph capture" in str(error.__cause__):
            _log.info("%s: no CUDA graphs: %s", path.name, first_line(error))
            return open_handle(path, device, threads, precision)
        raise
    if device != "cpu":
        check(handle, device, path.name)
    return handle


def load(path: Path, options: ort.SessionOptions, providers: list[Any]) -> ort.InferenceSession:
    """Open a file with onnxruntime.

    Raises
    ------
    ModelError
        If it refuses.
    """
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime raises bare Exceptions
        raise ModelError(
            f"{path}: onnxruntime cannot load it ({first_line(error)}); "
            "is it a complete ONNX file written by emdn-train export?"
        ) from error


def options_for(device: Place, threads: int) -> ort.SessionOptions:
    """Return what every session is opened with."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    # Spinning threads take the cores from the reader, the writer and other processes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if device == "cpu":
        # Where all results of a run lie is not planned ahead: half the memory, as fast.
        options.enable_mem_pattern = False
    else:
        options.add_session_config_entry(_ASSIGNMENT, "1")
    return options


def check(handle: ort.InferenceSession, device: Place, name: str) -> None:
    """Refuse a session that runs on the CPU; warn of a part of one that does.

    onnxruntime opens a session on the CPU where a provider does not start, and gives
    single operators to it for which a provider has no kernel.

    Raises
    ------
    DeviceError
        If the device's provider is not there, or convolutions are not its own.
    """
    wanted, label = PROVIDERS[device], NAMES[device]
    got = handle.get_providers()[0]
    if got != wanted:
        raise DeviceError(
            f"{label} is not available: onnxruntime fell back to {got}; "
            "check the driver with nvidia-smi"
        )
    away = elsewhere(handle, wanted)
    convolutions = sum(count for kind, count in away.items() if "Conv" in kind)
    if convolutions:
        raise DeviceError(
            f"{label} is not available: onnxruntime would run {convolutions} convolutions of "
            f"{name} on another device; check that cuDNN fits the installed onnxruntime"
        )
    if away:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(away.items()))
        _log.warning("warning: %s: not on %s but elsewhere run %s", name, label, listed)


def elsewhere(handle: ort.InferenceSession, provider: str) -> Counter[str]:
    """Count the operators, by kind, that other providers run, but for those that compute sizes."""
    if not hasattr(handle, "get_provider_graph_assignment_info"):  # onnxruntime before 1.24
        return Counter()
    return Counter(
        node.op_type
        for part in handle.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
        if node.op_type not in _SIZES
    )
