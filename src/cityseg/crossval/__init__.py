"""The summary of a sweep over folds, built from its run folders alone: ``python -m cityseg.crossval DIR``."""
