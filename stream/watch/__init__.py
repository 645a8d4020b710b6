"""What others see of a run: status, HTTP, logs."""
