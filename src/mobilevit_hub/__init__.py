"""MobileViT and MobileViTv2 by name."""
__version__ = "0.1.0"
