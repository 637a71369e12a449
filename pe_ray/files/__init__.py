"""Files: storage, parts of stages, images and tables of images."""
