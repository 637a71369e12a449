"""One YAML file is one run: read into one frozen tree, in which an unknown key is an error."""

from pe_ray.config.run_config import Config

__all__ = ["Config"]
