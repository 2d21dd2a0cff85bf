"""Data sets, clip sampling, augmentation and loaders."""
