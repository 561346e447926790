"""How fast the models are on this machine: ``emdn-deploy bench``, and what benchmarks share."""
