"""Networks: the ones no library has, and one strict door to segmentation_models_pytorch."""
