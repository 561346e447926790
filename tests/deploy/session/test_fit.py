import pytest

from emdn_deploy.session import fit
from emdn_deploy.session.complaints import ran_out


class Card:
    """Memory of which runs keep ``bytes_per_pixel``, and the first one ``libraries`` besides."""

    def __init__(self, free: int, bytes_per_pixel: int, libraries: int = 0) -> None:
        self.free, self.each, self.libraries = free, bytes_per_pixel, libraries
        self.kept = 0

    def run(self, side: int) -> None:
        self.free -= self.libraries + max(0, self.each * side * side - self.kept)
        self.libraries, self.kept = 0, max(self.kept, self.each * side * side)


@pytest.mark.parametrize("each", [100, 300, 2000])
def test_pixels_follow_from_a_run(each: int) -> None:
    card = Card(8 * 10**9, each, libraries=10**9)
    found = fit.pixels(card.run, lambda: card.free)
    # Of 7 GB that are left without libraries, a half.
    assert found == pytest.approx(fit.SHARE * 7e9 / each, rel=0.03)


def test_memory_that_others_give_back_is_no_gift() -> None:
    assert fit.pixels(lambda _: None, lambda: 64 * 1000) == fit.SHARE * 1000


@pytest.mark.parametrize(
    "text",
    [
        "bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal Failed to allocate "
        "memory for requested buffer of size 324000000",
        "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0",
        "CUDNN failure 3: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=here",
        "CUDA error cudaErrorMemoryAllocation:out of memory",
        "std::bad_alloc",
    ],
)
def test_a_lack_of_memory_is_recognised(text: str) -> None:
    assert ran_out(RuntimeError(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {text}"))
    assert ran_out(MemoryError())


@pytest.mark.parametrize(
    "text",
    [
        "CUDNN failure 3: CUDNN_STATUS_BAD_PARAM",
        "CUDA failure 700: an illegal memory access was encountered",
        "Got invalid dimensions for input: frames",
    ],
)
def test_other_failures_are_not_for_lack_of_memory(text: str) -> None:
    assert not ran_out(RuntimeError(text))
