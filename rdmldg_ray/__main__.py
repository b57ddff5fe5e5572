"""``python -m rdmldg_ray`` is ``rdmldg``."""

from rdmldg_ray.cli import app

app()
