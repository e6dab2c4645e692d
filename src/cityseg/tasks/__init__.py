"""What training means: LightningModules that join a network, a loss, an optimizer and the scores."""
