"""The contract that training and serving share: schema, geometry, card, types. numpy and cv2 only."""

import sys

# here, because all that runs a model imports this first: OpenVINO would tell its makers that it runs, and this is its
# own way to do without
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
