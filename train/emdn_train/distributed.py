"""Several processes that fit one model together, as torchrun starts them.

Each draws its share of every batch; gradients are added up, so that all take the same
step. The first process alone validates, writes and logs.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from emdn_deploy.bench import processor
from emdn_deploy.config import Device
from emdn_models import DeviceError, OutputError
from emdn_models.files import locked


@dataclass(frozen=True)
class Processes:
    """This process and how many there are."""

    device: torch.device  # where this process computes
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that validates, writes and logs."""
        return self.rank == 0

    @property
    def hardware(self) -> str:
        """Name of the hardware, and how much of it is used."""
        if self.device.type == "cuda":
            text = torch.cuda.get_device_name(self.device)
        else:
            text = f"{processor()}, {torch.get_num_threads()} threads"
        return text if self.count == 1 else f"{text}, {self.count} processes"

    def share(self, batch: Tensor) -> tuple[Tensor, int, int]:
        """Return this process's part of a batch, (n,) each, its place and the size of all.

        A batch that does not divide evenly is filled up from its start: batch norm
        across processes needs as many patches in each.
        """
        size = -(-len(batch) // self.count)
        filled = batch[torch.arange(size * self.count) % len(batch)]
        place = self.rank * size
        return filled[place : place + size], place, len(filled)

    def add_gradients(self, net: nn.Module) -> None:
        """Replace each gradient by its sum over the processes, the same bits in all."""
        if self.count == 1:
            return
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(part.view(gradient.shape))

    def add(self, *numbers: float) -> list[float]:
        """Return the sum of each number over the processes."""
        if self.count == 1:
            return list(numbers)
        summed = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        distributed.all_reduce(summed)
        return [float(number) for number in summed.tolist()]

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self.add(0.0)

    @contextmanager
    def alone(self, path: Path, what: Path) -> Iterator[bool]:
        """Lock an output by the first process for all; say in each whether to go on.

        Raises
        ------
        OutputError
            In the first one, if another command holds it.
        """
        with ExitStack() as stack:
            refused = None
            if self.first:
                try:
                    stack.enter_context(locked(path, what))
                except OutputError as error:
                    refused = error
            (any_refused,) = self.add(float(refused is not None))
            if refused is not None:
                raise refused
            yield not any_refused

    def synchronised(self, net: nn.Module) -> nn.Module:
        """Let batch norm on GPUs see the whole batch; torch has no such layer for CPUs."""
        if self.count == 1 or self.device.type != "cuda":
            return net
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        return converted


@contextmanager
def joined(device: Device) -> Iterator[Processes]:
    """Join the processes that torchrun has started, or be the only one.

    Raises
    ------
    DeviceError
        If there are more processes than GPUs.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        yield Processes(pick_device(device))
        return
    rank, count, local = (int(os.environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    own = pick_device(device, local)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    # The others wait as long as the first one validates.
    distributed.init_process_group(
        "nccl" if own.type == "cuda" else "gloo", timeout=timedelta(hours=1)
    )
    logger = logging.getLogger("emdn_train")
    level = logger.level
    if rank:
        logger.setLevel(logging.ERROR)
    try:
        yield Processes(own, rank, count)
    finally:
        logger.setLevel(level)
        distributed.destroy_process_group()


def pick_device(device: Device, local: int | None = None) -> torch.device:
    """Return the device to use, and never another one than was asked for by name.

    ``local`` is the number of this process on its machine, where there are several.
    """
    available = torch.cuda.is_available()
    if device not in ("auto", "cpu") and not available:
        raise DeviceError(
            f"--device {device}: torch finds no CUDA GPU; use --device cpu, or install a CUDA "
            "build of torch and a driver that fits it"
        )
    if not available or device == "cpu":
        return torch.device("cpu")
    if local is None:
        return torch.device("cuda")
    if local >= torch.cuda.device_count():
        raise DeviceError(
            f"process {local} of this machine has no GPU of its own, there are "
            f"{torch.cuda.device_count()}; start fewer processes, or use --device cpu"
        )
    return torch.device("cuda", local)
