"""The network folded for inference, described once for every runtime."""
