"""``rdmldg sweep`` as a script to submit, with the same arguments: 0 done, 1 failed, 2 wrong usage.

ray job submit --working-dir . -- python jobs/sweep.py ...
"""

import sys

from rdmldg_ray.cli import app

if __name__ == "__main__":
    app(["sweep", *sys.argv[1:]], prog_name="sweep.py")
