"""Small backbones of the paper's families, pretrained in minutes on one GPU."""
