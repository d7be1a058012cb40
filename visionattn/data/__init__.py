"""Images and labels: decoding, splits, augmentation, order, and the check before training."""
