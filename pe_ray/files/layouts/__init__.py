"""Layouts of image tables, one module each (see files.image_shards.Layout)."""
