"""The old name of `python -m engines.import_onnx`, for one more release."""

import sys

from lineament.engines.import_onnx import main

if __name__ == "__main__":
    print("engines.adopt is called engines.import_onnx now; this name goes with the next release", file=sys.stderr)
    sys.exit(main())
