"""``python -m emdn_train`` is ``emdn-train``."""

from emdn_train.cli import main

main()
