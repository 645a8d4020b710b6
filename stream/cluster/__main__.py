"""The command line of the cluster: `python -m stream.cluster --cameras cameras.yaml`."""

import sys

from lineament.stream.cluster.driver import main

if __name__ == "__main__":
    sys.exit(main())
