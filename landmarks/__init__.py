"""What training and serving share: schemas, geometry, cards, types. numpy and cv2 only."""

import sys

# turns off OpenVINO's telemetry, in the way that OpenVINO supports; here, because everything that runs a model imports
# this package first
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
