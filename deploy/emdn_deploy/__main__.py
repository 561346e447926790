"""``python -m emdn_deploy`` is ``emdn-deploy``."""

from emdn_deploy.cli import main

main()
