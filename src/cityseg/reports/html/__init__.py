"""HTML reports: one file each, with its style, scripts and pictures inside, that asks the network for nothing."""
