"""Reading of images and .mat files."""
