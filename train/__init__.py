"""Making the model: data, metrics and, with torch, the training itself."""
