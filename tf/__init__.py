"""MobileViT and MobileViTv2 in Keras: the twin of `mobilevit_hub.pt`, reading the same checkpoints."""
