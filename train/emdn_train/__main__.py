"""``python -m emdn_train``."""

from emdn_train.cli import main

main()
