"""How fast the models are on this machine: ``emdn-deploy bench``, and what benchmarks share.

::

    rounds    warm-up, calls timed in turn, percentiles, ratios
    live      frames that arrive at a rate: latencies and drops
    frames    noisy frames of any size
    memory    peak memory of a fresh process
    machine   where and with what numbers were made
    rows      one row of a table of timings
    run       all of it for the shipped models; report: as printed
"""
