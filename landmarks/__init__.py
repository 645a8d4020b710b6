"""The contract that training and serving share: schema, geometry, card, types. numpy and cv2 only."""
