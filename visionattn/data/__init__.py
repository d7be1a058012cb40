"""Images and labels: decoding, splits, augmentation, sampling order, and the data check."""
