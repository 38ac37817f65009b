"""pydensecrf's side of `dense_crf`; needs a Python with pydensecrf and NumPy only.

    python benchmarks/pydensecrf_peer.py problem.npz marginals.npz

Prints JSON: seconds and CPU seconds of one image, and of a batch with one process per core.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time

import numpy as np
import pydensecrf.densecrf as densecrf


def infer(problem: dict[str, np.ndarray]) -> np.ndarray:
    """Marginals (h, w, c) as the published scripts compute them, including set-up."""
    unary, image = problem["unary"], np.ascontiguousarray(problem["image"])
    h, w, c = unary.shape
    gamma, w2, alpha, beta, w1, iterations = problem["settings"].tolist()
    crf = densecrf.DenseCRF2D(w, h, c)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(-1, c).T))
    crf.addPairwiseGaussian(sxy=gamma, compat=w2)
    crf.addPairwiseBilateral(sxy=alpha, srgb=beta, rgbim=image, compat=w1)
    return np.array(crf.inference(int(iterations))).T.reshape(h, w, c)


def main() -> None:
    """Times one image, then a batch of `problem["batch"]` images."""
    with np.load(sys.argv[1]) as stored:
        problem = dict(stored)
    start, cpu = time.perf_counter(), time.process_time()
    marginals = infer(problem)
    single, cpu = time.perf_counter() - start, time.process_time() - cpu
    batch = [problem] * int(problem["batch"])
    with multiprocessing.Pool(len(os.sched_getaffinity(0))) as pool:
        pool.map(abs, range(64))  # waits until the processes have started
        start = time.perf_counter()
        pool.map(infer, batch, chunksize=1)
        together = time.perf_counter() - start
    np.savez(sys.argv[2], marginals=marginals)
    print(json.dumps({"single": single, "cpu": cpu, "batch": together}))


if __name__ == "__main__":
    main()
