"""Pixels to descriptors: backbones, pooling, whitening."""
