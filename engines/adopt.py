"""Former name of `python -m engines.import_onnx`, kept for one more release."""

import sys

from lineament.engines.import_onnx import main

if __name__ == "__main__":
    print("engines.adopt is now engines.import_onnx; the old name will be removed in the next release", file=sys.stderr)
    sys.exit(main())
