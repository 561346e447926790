"""What onnxruntime's errors say: it raises bare Exceptions, of no type of its own."""

# Of onnxruntime's arenas (CPU and CUDA), CUDA's runtime, cuDNN, cuBLAS and TensorRT.
_SIGNS = (
    "failed to allocate memory",
    "bfcarena",
    "out of memory",
    "outofmemory",
    "cuda_error_out_of_memory",
    "cudaerrormemoryallocation",
    "alloc_failed",
    "allocation_failed",
    "bad_alloc",
)


def ran_out(error: BaseException) -> bool:
    """Tell whether an error of a run or of a buffer is for lack of memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _SIGNS)


def first_line(error: BaseException) -> str:
    """Return what an error says, without the lines that follow."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
