"""From files to batches: dataset layouts, label decoding, augmentation, loading."""
