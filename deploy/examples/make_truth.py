"""Make truth.h5 small enough to ship: ``python make_truth.py MOVIE_TRUTH.h5 truth.h5``.

Expected counts are rounded to 1/16 electron, 1/500 of the noise, and the places of atoms to
1/64 pixel, so that they compress; the rest of what ``emdn-train simulate --kind movie`` writes
is copied.
"""

import sys

import h5py
import numpy as np


def main(source: str, target: str) -> None:
    """Copy the truth of a movie: expected counts (N, H, W), atoms as rows of frame, x, y."""
    with h5py.File(source) as whole, h5py.File(target, "w") as small:
        small.attrs.update(whole.attrs)
        counts = whole["expected"]
        atoms = [np.insert(one[()], 0, int(frame), axis=1) for frame, one in whole["atoms"].items()]
        for name, values, step, chunks in (
            ("expected", counts[()], 1 / 16, (len(counts), 4, counts.shape[2])),
            ("atoms", np.concatenate(atoms), 1 / 64, True),
        ):
            rounded = (np.rint(values / step) * step).astype(np.float32)
            small.create_dataset(name, data=rounded, chunks=chunks, compression=9, shuffle=True)
            small[name].attrs["rounded_to"] = step
        small.create_dataset("valid", data=whole["valid"][()], compression=9)
        for name in ("drift", "defect"):
            whole.copy(name, small)
        small["expected"].attrs["units"] = "electrons"
        small["atoms"].attrs["columns"] = "frame, x, y (pixels)"
        small["defect"].attrs["columns"] = "x, y"


if __name__ == "__main__":
    main(*sys.argv[1:])
