"""The command line of the cluster: `python -m stream.cluster --cameras cameras.yaml`."""

import sys

from lineament.stream.cluster.driver import main

sys.exit(main())
