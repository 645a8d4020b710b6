"""Training of landmark models: data, augmentation, nets, the loop, evaluation. Data and metrics need no torch."""
